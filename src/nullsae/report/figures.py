"""Each figure of a subject: a metric's, or one of `report.drawings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nullsae.config.metrics import METRICS, Metric
from nullsae.config.sites import site_kind, site_layer
from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FIGURES
from nullsae.report.names import figure_kinds, figure_name
from nullsae.report.render import to_svg
from nullsae.report.study import Study

MAX_SITES_SIDE_BY_SIDE = 6
"""With more sites, metrics are drawn against depth instead of in a panel per site."""


@dataclass(frozen=True)
class Figure:
    """One drawn figure."""

    name: str
    kind: str
    title: str
    caption: str
    svg: str


def draw_figures(study: Study, subject: str) -> list[Figure]:
    """All figures of a subject, in display order."""
    return [draw_figure(study, subject, kind) for kind in figure_kinds(study.config)]


def draw_figure(study: Study, subject: str, kind: str) -> Figure:
    """One figure of a subject."""
    if kind in FIGURES:
        figure = FIGURES[kind]()
        title, (chart, caption) = figure.title, figure.draw(study, subject)
    else:
        metric = METRICS[kind]()
        of_metric = compact.metric_matrix if study.compact else _metric_figure
        title, (chart, caption) = metric.title, of_metric(study, subject, metric)
    return Figure(figure_name(subject, kind), kind, title, caption, to_svg(chart))


def _metric_figure(study: Study, subject: str, metric: Metric) -> tuple[Any, str]:
    level = f"{100 * study.config.statistics.confidence:g} % bootstrap interval"
    unit = f"resampled over {metric.unit}s"
    sites = study.config.subjects[subject].sites
    many = len(sites) > MAX_SITES_SIDE_BY_SIDE
    kinds = list(dict.fromkeys(site_kind(site) for site in sites))
    caption = f"{metric.definition} {metric.reading}"
    rows = [
        {
            "variant": row["variant"],
            "panel": panels.panel(study, row, _place(row["site"], kinds) if many else row["site"]),
            "block": site_layer(row["site"]),
            **{key: row[key] for key in ("value", "low", "high")},
        }
        for row in sorted(
            study.rows("summaries", subject=subject, metric=metric.name),
            key=panels.sort_key(study, subject),
        )
        if row["value"] is not None
    ]
    if not rows:
        return charts.nothing(metric.title, "No values: see the coverage table"), caption
    shared: dict[str, Any] = {
        "title": metric.title,
        "subtitle": f"mean and {level}, {unit}",
        "reference": metric.chance,
    }
    chance = " The dashed line is chance." if metric.chance is not None else ""
    if many:
        n_panels = len({row["panel"] for row in rows})
        chart = charts.depth_profile(
            rows,
            study.variants,
            columns=min(2, n_panels) if len(kinds) == 1 else min(3, len(kinds)),
            axis_title=_axis_title(kinds),
            **shared,
        )
        banded = " of trained" if len(study.variants) > charts.MAX_BANDS else ""
        if not metric.sites_share_scale and len(kinds) > 1:
            chart = chart.resolve_scale(y="independent")
        return chart, f"{caption} Shaded: the {level}{banded}.{chance}"
    chart = charts.dot_whisker(
        rows,
        study.variants,
        columns=panels.columns(study, subject),
        shared_scale=metric.sites_share_scale,
        **shared,
    )
    return chart, f"{caption} The shaded band is the interval of trained.{chance}"


def _place(site: str, kinds: list[str]) -> str:
    """The kind of a site if there are several, since each has its own panel; else nothing."""
    return site_kind(site) if len(kinds) > 1 else ""


def _axis_title(kinds: list[str]) -> str:
    if len(kinds) == 1:
        return f"Block ({kinds[0]})"
    return "Block (embed: \u22121)" if "embed" in kinds else "Block"
