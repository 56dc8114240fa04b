"""Each figure of a subject: a metric's, or one of `report.drawings`."""

from __future__ import annotations

from typing import Any, NamedTuple

from nullsae.config.metrics import METRICS, Metric
from nullsae.config.sites import site_kind, site_layer
from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FIGURES
from nullsae.report.names import figure_name
from nullsae.report.render import to_svg, unvalidated
from nullsae.report.study import Study

MAX_SITES_SIDE_BY_SIDE = 6
"""With more sites, metrics are drawn against depth instead of one panel per site."""


class Figure(NamedTuple):
    """One drawn figure."""

    name: str
    kind: str
    title: str
    caption: str
    svg: str


def draw_figure(study: Study, subject: str, kind: str) -> Figure:
    """Draw one figure of a subject."""
    with unvalidated():
        title, chart, caption = make_chart(study, subject, kind)
        svg = to_svg(chart)
    return Figure(figure_name(subject, kind), kind, title, caption, svg)


def make_chart(study: Study, subject: str, kind: str) -> tuple[str, Any, str]:
    """Return title, chart and caption of one figure of a subject."""
    if kind in FIGURES:
        figure = FIGURES[kind]()
        return figure.title, *figure.draw(study, subject)
    metric = METRICS[kind]()
    of_metric = compact.metric_matrix if study.compact else _metric_figure
    return metric.title, *of_metric(study, subject, metric)


def _metric_figure(study: Study, subject: str, metric: Metric) -> tuple[Any, str]:
    sites = study.config.subjects[subject].sites
    many = len(sites) > MAX_SITES_SIDE_BY_SIDE
    kinds = list(dict.fromkeys(site_kind(site) for site in sites))
    # Each kind of site gets its own panel; a single kind needs no name.
    places = {site: site_kind(site) if len(kinds) > 1 else "" for site in sites}
    caption = f"{metric.definition} {metric.reading}"
    summaries = study.rows("summaries", subject=subject, metric=metric.name)
    rows = [
        {
            "variant": row["variant"],
            "panel": panels.panel(study, row, places[row["site"]] if many else row["site"]),
            "block": site_layer(row["site"]),
            **{key: row[key] for key in ("value", "low", "high")},
        }
        for row in sorted(summaries, key=study.order(subject, *panels.LEVELS))
        if row["value"] is not None
    ]
    if not rows:
        return charts.nothing(metric.title, "No values: see the coverage table"), caption
    subtitle = f"mean and {panels.level(study)}, resampled over {metric.unit}s"
    chance = " The dashed line is chance." if metric.chance is not None else ""
    if many:
        n_panels = len({row["panel"] for row in rows})
        n_columns = min(2, n_panels) if len(kinds) == 1 else min(3, len(kinds))
        axis_title = "Block (embed: \u22121)" if "embed" in kinds else "Block"
        chart = charts.depth_profile(
            rows,
            study.variants,
            charts.Frame(n_columns, metric.title, subtitle),
            axis_title=f"Block ({kinds[0]})" if len(kinds) == 1 else axis_title,
            reference=metric.chance,
        )
        if not metric.sites_share_scale and len(kinds) > 1:
            chart = chart.resolve_scale(y="independent")
        return chart, f"{caption}{panels.shading(study)}{chance}"
    chart = charts.dot_whisker(
        rows,
        study.variants,
        charts.Frame(panels.columns(study, subject), metric.title, subtitle),
        reference=metric.chance,
        shared_scale=metric.sites_share_scale,
    )
    return chart, f"{caption} The shaded band is the interval of trained.{chance}"
