"""The figures of a study with many SAEs: matrices of variants by SAEs instead of a panel each."""

from __future__ import annotations

from typing import Any

from nullsae.config.variants import has_model
from nullsae.report import charts
from nullsae.report.captions import METRIC_TEXT
from nullsae.report.matrix import Steps, cells, columns_for, differences, matrix, shares, short
from nullsae.report.study import Row, Study, mean, thin
from nullsae.statistics.metrics import Metric

Drawn = tuple[Any, str, str]
"""Chart, title, caption."""
Grid = dict[tuple[str, str, str], tuple[float | None, float | None]]

MAX_SITES = 6
MAX_CELLS = 1800
"""Cells of a figure; with more, fewer sites are drawn, so that the page stays light."""
MAX_PANELS_OF_LATENTS = 12
LOSS_STEP_NATS = 0.1
"""A rise of the loss that is drawn as none."""
LOOKUP_COLUMN = "token means"
CLEAN = "no SAE (clean)"
LOSS_COLUMNS = {CLEAN: "ce_clean", "mean ablated": "ce_mean", "zero ablated": "ce_zero"}
"""Names with a space: no SAE can have them."""


def drawn_sites(study: Study, subject: str, cells_per_site: int) -> list[str]:
    """The sites that a figure has room for, evenly spread."""
    n = max(1, min(MAX_SITES, MAX_CELLS // cells_per_site))
    return thin(study.config.subjects[subject].sites, n)


def which_sites(study: Study, subject: str, drawn: list[str]) -> str:
    """A sentence on the sites that are not drawn, if any."""
    n_sites = len(study.config.subjects[subject].sites)
    if len(drawn) == n_sites:
        return ""
    return f" Drawn for {len(drawn)} of {n_sites} sites: {', '.join(drawn)}."


def metric_matrix(study: Study, subject: str, metric: Metric) -> Drawn:
    """A metric of `summaries`, a panel for each site, explainer and scorer."""
    text, config = METRIC_TEXT[metric.name], study.config
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    if metric.is_scored:
        pairs = list(config.scored_pairs())
    saes = list(config.saes)
    sites = drawn_sites(study, subject, len(study.variants) * len(saes) * len(pairs))
    margin = float(getattr(config.statistics.equivalence_margins, metric.name))
    values = {
        tuple(row[key] for key in ("explainer", "scorer", "site", "sae", "variant")): row["value"]
        for row in study.rows("summaries", subject=subject, metric=metric.name)
    }
    grid: Grid = {}
    for pair in pairs:
        for site in sites:
            panel = site if pair[0] is None else f"{site} · {pair[0]}, {pair[1]}"
            for sae in saes:
                trained = values.get((*pair, site, sae, "trained"))
                unit = margin * abs(trained or 0.0) if metric.margin_is_share else margin
                for variant in study.variants:
                    value = values.get((*pair, site, sae, variant))
                    grid[panel, variant, sae] = value, _distance(value, trained, unit)
    share = f"{100 * margin:g} % of trained" if metric.margin_is_share else f"{margin:g}"
    caption = (
        f"{text.definition} {text.reading} Each column is one SAE. The ground is the distance from "
        f"trained in the same column, in equivalence margins ({share}): plain cells are less than "
        f"one margin away. How sure a difference is, the verdicts and contrasts say."
        f"{which_sites(study, subject, sites)}"
    )
    steps = differences("minus trained, in margins")
    return figure(study, grid, steps, metric.title, "mean per variant and SAE", caption, sites)


def token_lookup_matrix(study: Study, subject: str) -> Drawn:
    """Explained variance of the SAEs beside that of a mean per token id."""
    text, config = METRIC_TEXT["token_lookup"], study.config
    sites = drawn_sites(study, subject, len(study.variants) * (len(config.saes) + 1))
    margin = config.statistics.equivalence_margins.explained_variance
    grid: Grid = {}
    for site in sites:
        for variant in study.variants:
            rows = study.rows("reconstruction", subject=subject, site=site, variant=variant)
            floor = mean(row["token_lookup_r2"] for row in rows)
            grid[site, variant, LOOKUP_COLUMN] = floor, None
            for sae in config.saes:
                value = mean(row["explained_variance"] for row in rows if row["sae"] == sae)
                grid[site, variant, sae] = value, _distance(value, floor, margin)
    caption = (
        f"{text.definition} {text.reading} The ground is the SAE minus the token means of the same "
        f"row, in equivalence margins of explained variance ({margin:g})."
        f"{which_sites(study, subject, sites)}"
    )
    steps = differences("minus token means, in margins")
    subtitle = "explained variance, mean over draws and seeds"
    return figure(study, grid, steps, text.title, subtitle, caption, sites, [LOOKUP_COLUMN])


def cross_entropy_matrix(study: Study, subject: str) -> Drawn:
    """The subject's loss: untouched, with mean or zero in the place of the site, with each SAE."""
    text, config = METRIC_TEXT["cross_entropy"], study.config
    sites = drawn_sites(study, subject, len(study.variants) * (len(config.saes) + 3))
    grid: Grid = {}
    for site in sites:
        for variant in study.variants:
            rows = study.rows("reconstruction", subject=subject, site=site, variant=variant)
            losses = {
                name: mean(row[column] for row in rows) for name, column in LOSS_COLUMNS.items()
            }
            for sae in config.saes:
                losses[sae] = mean(row["ce_sae"] for row in rows if row["sae"] == sae)
            for name, value in losses.items():
                shade = _distance(value, losses[CLEAN], LOSS_STEP_NATS)
                grid[site, variant, name] = value, shade
    caption = (
        f"{text.definition} {text.reading} The ground is the loss minus clean of the same row, in "
        f"steps of {LOSS_STEP_NATS:g} nats.{without_model(study)}"
        f"{which_sites(study, subject, sites)}"
    )
    steps = differences(f"minus clean, in {LOSS_STEP_NATS:g} nats")
    subtitle = "nats per token, mean over draws and seeds"
    return figure(study, grid, steps, text.title, subtitle, caption, sites, list(LOSS_COLUMNS))


def without_model(study: Study) -> str:
    """A sentence on each variant of the study that has no loss."""
    sampled = [variant for variant in study.variants if not has_model(variant)]
    return "".join(f" {variant} has no model, and so no loss." for variant in sampled)


def cross_evaluation(study: Study, subject: str) -> Drawn:
    """The first SAE of each variant on the activations of every variant."""
    text, config = METRIC_TEXT["cross_evaluation"], study.config
    sae = next(iter(config.saes))
    sites = thin(config.subjects[subject].sites, MAX_SITES)
    caption = (
        f"{text.definition} {text.reading} SAE: {sae}; mean over draws and seeds."
        f"{' Other SAEs stand in the table cross_evaluation.' if len(config.saes) > 1 else ''}"
        f"{which_sites(study, subject, sites)}"
    )
    steps = shares("explained variance, rescaled")
    data: list[Row] = []
    for site in sites:
        for variant in study.variants:
            found = study.rows(
                "cross_evaluation", subject=subject, site=site, variant=variant, sae=sae
            )
            for other in study.variants:
                rows = [row for row in found if row["evaluated_on"] == other]
                rescaled = mean(row["explained_variance_rescaled"] for row in rows)
                grid: Grid = {(site, variant, other): (rescaled, rescaled)}
                plain = short(mean(row["explained_variance"] for row in rows))
                own = {"second": plain, "own": other == variant}
                data += [cell | own for cell in cells(grid, steps)]
    if all(row["step"] is None for row in data):
        return charts.nothing(text.title, "No cross evaluations"), text.title, caption
    chart = matrix(
        data,
        study.variants,
        study.variants,
        steps,
        columns=columns_for(len(sites), len(study.variants)),
        title=text.title,
        subtitle="explained variance: large, inputs rescaled to the SAE's mean norm; small, as is",
        row_title="SAE trained on",
        column_title="evaluated on",
        second=True,
    )
    return chart, text.title, caption


def latents_of(study: Study, subject: str) -> tuple[str, list[str]]:
    """The SAE and the sites whose latents are drawn one by one, a panel for each null and site."""
    n_sites = max(1, MAX_PANELS_OF_LATENTS // max(1, len(study.nulls)))
    return next(iter(study.config.saes)), thin(study.config.subjects[subject].sites, n_sites)


def _distance(value: float | None, origin: float | None, unit: float) -> float | None:
    if value is None or origin is None or unit == 0:
        return None
    return (value - origin) / unit


def figure(
    study: Study,
    grid: Grid,
    steps: Steps,
    title: str,
    subtitle: str,
    caption: str,
    sites: list[str],
    first_columns: list[str] | None = None,
) -> Drawn:
    """A matrix of `grid`, with its title and caption, or a figure that says that it is empty."""
    names = [*(first_columns or []), *study.config.saes]
    if all(value is None for value, _ in grid.values()):
        return charts.nothing(title, "No values: see the coverage table"), title, caption
    chart = matrix(
        list(cells(grid, steps)),
        study.variants,
        names,
        steps,
        columns=columns_for(len(sites), len(names)),
        title=title,
        subtitle=subtitle,
    )
    return chart, title, caption
