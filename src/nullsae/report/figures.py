"""Each figure of a subject: which rows it shows, in which form, and its caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import altair as alt

from nullsae.config.sites import site_kind, site_layer
from nullsae.config.study import NO_EXPLAINER
from nullsae.config.variants import GAUSSIAN, floor_name
from nullsae.report import charts, compact, dictionaries
from nullsae.report.along import training
from nullsae.report.captions import CHANCE, METRIC_TEXT
from nullsae.report.names import entropy_pair, figure_kinds, figure_name
from nullsae.report.render import to_svg
from nullsae.report.study import Row, Study, mean, thin
from nullsae.statistics.metrics import METRICS, Metric

MAX_SITES_SIDE_BY_SIDE = 6
"""With more sites, metrics are drawn against depth instead of in a panel per site."""
MAX_POINTS = 6000
"""Latents in a scatter plot; beyond it every m-th is drawn, so that the page stays light."""
CE = {"clean": "circle", "with SAE": "diamond", "mean": "square", "zero": "triangle-down"}
CE_COLUMNS = {"clean": "ce_clean", "with SAE": "ce_sae", "mean": "ce_mean", "zero": "ce_zero"}
LOOKUP = {"SAE": "circle", "token lookup": "diamond", "Gaussian floor": "triangle-down"}
MAX_VARIANTS_IN_A_CLOUD = 6
"""With more variants, latents are drawn in a panel for each null."""
MAX_CURVES = 600
"""Lines in the figure of training curves; with more, fewer sites are drawn."""


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
    return [_draw(study, subject, kind) for kind in figure_kinds(study.config)]


def _draw(study: Study, subject: str, kind: str) -> Figure:
    metric = next((metric for metric in METRICS if metric.name == kind), None)
    special: dict[str, Callable[[Study, str], tuple[alt.TopLevelMixin, str, str]]] = {
        "token_lookup": compact.token_lookup_matrix if study.compact else _token_lookup,
        "cross_entropy": compact.cross_entropy_matrix if study.compact else _cross_entropy,
        "cross_evaluation": compact.cross_evaluation,
        "geometry": dictionaries.geometry,
        "overlap": dictionaries.overlap,
        "training_curves": _training_curves,
        "training": training,
        "entropy_auroc": _entropy_auroc,
    }
    of_metric = compact.metric_matrix if study.compact else _metric_figure
    chart, title, caption = (
        of_metric(study, subject, metric) if metric else special[kind](study, subject)
    )
    return Figure(figure_name(subject, kind), kind, title, caption, to_svg(chart))


def _panel(study: Study, row: Row, site: str = "") -> str:
    """What stands above a panel: the site, and the levels that the study has more than one of."""
    parts = [site] if site else []
    if len(study.config.saes) > 1:
        parts.append(row["sae"])
    if row.get("explainer") is not None:
        parts.append(f"{row['explainer']}, {row['scorer']}")
    return " · ".join(parts) or "all sites"


def _sort_key(study: Study, subject: str) -> Callable[[Row], tuple[int, ...]]:
    config = study.config
    orders: dict[str, dict[Any, int]] = {
        "explainer": {name: i for i, name in enumerate([*config.explainers, NO_EXPLAINER])},
        "scorer": {name: i for i, name in enumerate(config.scorers)},
        "sae": {name: i for i, name in enumerate(config.saes)},
        "site": {name: i for i, name in enumerate(config.subjects[subject].sites)},
        "variant": {name: i for i, name in enumerate(study.variants)},
    }
    return lambda row: tuple(order.get(row.get(key), -1) for key, order in orders.items())


def _columns(study: Study, subject: str) -> int:
    """Panels side by side: sites, so that a row is one SAE, explainer and scorer."""
    n_sites = len(study.config.subjects[subject].sites)
    if n_sites <= charts.MAX_COLUMNS:
        return n_sites
    return 3 if n_sites in (5, 6) else charts.MAX_COLUMNS


def _metric_figure(study: Study, subject: str, metric: Metric) -> tuple[Any, str, str]:
    text = METRIC_TEXT[metric.name]
    level = f"{100 * study.config.statistics.confidence:g} % bootstrap interval"
    unit = f"resampled over {metric.unit}s"
    sites = study.config.subjects[subject].sites
    many = len(sites) > MAX_SITES_SIDE_BY_SIDE
    kinds = list(dict.fromkeys(site_kind(site) for site in sites))
    caption = f"{text.definition} {text.reading}"
    rows = [
        {
            "variant": row["variant"],
            "panel": _panel(study, row, _place(row["site"], kinds) if many else row["site"]),
            "block": site_layer(row["site"]),
            **{key: row[key] for key in ("value", "low", "high")},
        }
        for row in sorted(
            study.rows("summaries", subject=subject, metric=metric.name),
            key=_sort_key(study, subject),
        )
        if row["value"] is not None
    ]
    if not rows:
        return (
            charts.nothing(metric.title, "No values: see the coverage table"),
            metric.title,
            caption,
        )
    shared: dict[str, Any] = {
        "title": metric.title,
        "subtitle": f"mean and {level}, {unit}",
        "reference": CHANCE.get(metric.name),
    }
    chance = " The dashed line is chance." if metric.name in CHANCE else ""
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
        if metric.name == "l1" and len(kinds) > 1:
            chart = chart.resolve_scale(y="independent")
        return chart, metric.title, f"{caption} Shaded: the {level}{banded}.{chance}"
    chart = charts.dot_whisker(
        rows,
        study.variants,
        columns=_columns(study, subject),
        shared_scale=metric.name != "l1",
        **shared,
    )
    return chart, metric.title, f"{caption} The shaded band is the interval of trained.{chance}"


def _place(site: str, kinds: list[str]) -> str:
    """The kind of a site if there are several, since each has its own panel; else nothing."""
    return site_kind(site) if len(kinds) > 1 else ""


def _axis_title(kinds: list[str]) -> str:
    if len(kinds) == 1:
        return f"Block ({kinds[0]})"
    return "Block (embed: \u22121)" if "embed" in kinds else "Block"


def _averages(study: Study, subject: str, columns: dict[str, str]) -> list[Row]:
    """Columns of `reconstruction`, averaged over draws and seeds, one row per quantity."""
    cells: dict[tuple[str, str], list[Row]] = {}
    ordered = sorted(study.rows("reconstruction", subject=subject), key=_sort_key(study, subject))
    for row in ordered:
        cells.setdefault((_panel(study, row, row["site"]), row["variant"]), []).append(row)
    return [
        {"panel": panel, "variant": variant, "quantity": quantity, "value": value}
        for (panel, variant), rows in cells.items()
        for quantity, column in columns.items()
        if (value := mean(row[column] for row in rows)) is not None
    ]


def _token_lookup(study: Study, subject: str) -> tuple[Any, str, str]:
    text = METRIC_TEXT["token_lookup"]
    columns = {"SAE": "explained_variance", "token lookup": "token_lookup_r2"}
    rows = _averages(study, subject, columns) + _floors(study, subject)
    chart = charts.ranges(
        rows,
        study.variants,
        {name: LOOKUP[name] for name in LOOKUP if any(row["quantity"] == name for row in rows)},
        columns=_columns(study, subject),
        title=text.title,
        subtitle="explained variance, mean over draws and seeds",
    )
    return chart, text.title, f"{text.definition} {text.reading}"


def _floors(study: Study, subject: str) -> list[Row]:
    """Explained variance of each variant's Gaussian floor, where there are any."""
    if not study.config.evaluation.gaussian_floors:
        return []
    found = []
    for variant in study.variants:
        rows = [row for row in study.floors if row["variant"] == floor_name(variant)]
        if variant == "trained" and GAUSSIAN in study.variants:
            rows = study.rows("reconstruction", variant=GAUSSIAN)
        panels: dict[str, list[Row]] = {}
        for row in sorted(rows, key=_sort_key(study, subject)):
            if row["subject"] == subject:
                panels.setdefault(_panel(study, row, row["site"]), []).append(row)
        found += [
            {
                "panel": panel,
                "variant": variant,
                "quantity": "Gaussian floor",
                "value": mean(row["explained_variance"] for row in cells),
            }
            for panel, cells in panels.items()
        ]
    return found


def _cross_entropy(study: Study, subject: str) -> tuple[Any, str, str]:
    text = METRIC_TEXT["cross_entropy"]
    chart = charts.ranges(
        _averages(study, subject, CE_COLUMNS),
        study.variants,
        CE,
        columns=_columns(study, subject),
        title=text.title,
        subtitle="nats per token, mean over draws and seeds",
    )
    caption = f"{text.definition} {text.reading}{compact.without_model(study)}"
    return chart, text.title, caption


def _training_curves(study: Study, subject: str) -> tuple[Any, str, str]:
    text = METRIC_TEXT["training_curves"]
    caption = f"{text.definition} {text.reading}"
    history = study.rows("history", subject=subject)
    sites = list(study.config.subjects[subject].sites)
    if study.compact:
        runs = {(row["site"], row["sae"], row["variant"], row["draw"]) for row in history}
        most = max((sum(run[0] == site for run in runs) for site in sites), default=0)
        sites = thin(sites, max(1, min(compact.MAX_SITES, MAX_CURVES // max(1, most))))
        caption += (
            f" Dictionaries that are computed, not trained, have no curve."
            f"{compact.which_sites(study, subject, sites)}"
        )
    rows = [
        {
            "panel": _panel(study, row, row["site"]),
            "variant": row["variant"],
            "run": f"{row['draw']}/{row['seed']}/{row['variant']}",
            "tokens": row["tokens"],
            "value": row["heldout_explained_variance"],
        }
        for row in sorted(history, key=_sort_key(study, subject))
        if row["site"] in sites
    ]
    if not rows:
        return charts.nothing(text.title, "No evaluations along training"), text.title, caption
    chart = charts.curves(
        rows,
        study.variants,
        columns=charts.MAX_COLUMNS if study.compact else _columns(study, subject),
        height=120 if study.compact else 230,
        title=text.title,
        subtitle="explained variance on held-out tokens, one line per draw and seed",
    )
    return chart, text.title, caption


def _entropy_auroc(study: Study, subject: str) -> tuple[Any, str, str]:
    text = METRIC_TEXT["entropy_auroc"]
    pair = entropy_pair(study.config)
    assert pair is not None  # the figure exists only where something is scored
    explainer, scorer = pair
    caption = f"{text.definition} {text.reading}"
    by_null = study.compact or len(study.variants) > MAX_VARIANTS_IN_A_CLOUD
    rows = _scored_latents(study, subject, explainer, scorer)
    if by_null:
        sae, sites = compact.latents_of(study, subject)
        rows = [row for row in rows if row["sae"] == sae and row["site"] in sites]
        rows = [
            {**row, "panel": null if len(sites) == 1 else f"{null} · {row['site']}"}
            for null in study.nulls
            for row in sorted(rows, key=lambda row: sites.index(row["site"]))
            if row["variant"] in ("trained", null)
        ]
        caption += f" Each panel has one null, and trained in red; SAE: {sae}."
        caption += compact.which_sites(study, subject, sites)
    if not rows:
        return charts.nothing(text.title, "No scored latents"), text.title, caption
    step = -(-len(rows) // MAX_POINTS)
    if step > 1:
        caption += f" One latent in {step} is drawn ({len(rows)} in all)."
    chart = charts.scatter(
        [{key: row[key] for key in ("panel", "variant", "x", "value")} for row in rows[::step]],
        study.variants,
        columns=3 if by_null else _columns(study, subject),
        height=130 if by_null else 260,
        legend=not by_null,
        title=text.title,
        subtitle=f"AUROC of {scorer} with explanations of {explainer}, one mark per sampled latent",
        x_title="Token entropy, whole split (bits)",
        reference=CHANCE["auroc"],
    )
    return chart, text.title, caption


def _scored_latents(study: Study, subject: str, explainer: str, scorer: str) -> list[Row]:
    """Token entropy (`x`) and AUROC (`value`) of each sampled latent that has both."""
    keys = ("variant", "draw", "site", "sae", "seed", "latent")
    entropy = {
        tuple(row[key] for key in keys): row["token_entropy_corrected_bits"]
        for row in study.rows("latents", subject=subject)
    }
    scores = study.rows("scores", subject=subject, explainer=explainer, scorer=scorer)
    return [
        {
            "panel": _panel(study, {**row, "explainer": None}, row["site"]),
            "variant": row["variant"],
            "site": row["site"],
            "sae": row["sae"],
            "x": x,
            "value": row["auroc"],
        }
        for row in sorted(scores, key=_sort_key(study, subject))
        if row["auroc"] is not None
        and (x := entropy.get(tuple(row[key] for key in keys))) is not None
    ]
