"""The figures of a study with many SAEs: matrices of variants by SAEs instead of a panel each."""

from __future__ import annotations

from typing import Any

from nullsae.config.metrics import Metric
from nullsae.report import charts
from nullsae.report.matrix import Steps, cells, columns_for, differences, matrix
from nullsae.report.study import Study, thin

CellValues = dict[tuple[str, str, str], tuple[float | None, float | None]]

MAX_SITES = 6
MAX_CELLS = 1800
"""Cells of a figure; with more, fewer sites are drawn, so that the page stays light."""


def drawn_sites(study: Study, subject: str, cells_per_site: int) -> list[str]:
    """The sites that a figure has room for, evenly spread."""
    n = max(1, min(MAX_SITES, MAX_CELLS // cells_per_site))
    return thin(study.config.subjects[subject].sites, n)


def which_sites(study: Study, subject: str, drawn: list[str]) -> str:
    """A sentence that names the drawn sites, if some are left out."""
    n_sites = len(study.config.subjects[subject].sites)
    if len(drawn) == n_sites:
        return ""
    return f" Drawn for {len(drawn)} of {n_sites} sites: {', '.join(drawn)}."


def metric_matrix(study: Study, subject: str, metric: Metric) -> tuple[Any, str]:
    """Chart and caption of a metric of `summaries`, a panel for each site, explainer and scorer."""
    config = study.config
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    if metric.is_scored:
        pairs = list(config.scored_pairs())
    saes = list(config.saes)
    sites = drawn_sites(study, subject, len(study.variants) * len(saes) * len(pairs))
    margin = config.statistics.margin(metric.name)
    values = {
        tuple(row[key] for key in ("explainer", "scorer", "site", "sae", "variant")): row["value"]
        for row in study.rows("summaries", subject=subject, metric=metric.name)
    }
    grid: CellValues = {}
    for pair in pairs:
        for site in sites:
            panel = site if pair[0] is None else f"{site} · {pair[0]}, {pair[1]}"
            for sae in saes:
                trained = values.get((*pair, site, sae, "trained"))
                unit = margin * abs(trained or 0.0) if metric.margin_is_share else margin
                for variant in study.variants:
                    value = values.get((*pair, site, sae, variant))
                    grid[panel, variant, sae] = value, distance(value, trained, unit)
    share = f"{100 * margin:g} % of trained" if metric.margin_is_share else f"{margin:g}"
    caption = (
        f"{metric.definition} {metric.reading} Each column is one SAE. The ground is the "
        f"distance from trained in the same column, in equivalence margins ({share}): plain cells "
        f"are less than one margin away. How sure a difference is, the verdicts and contrasts say."
        f"{which_sites(study, subject, sites)}"
    )
    steps = differences("minus trained, in margins")
    subtitle = "mean per variant and SAE"
    return figure(study, grid, steps, metric.title, subtitle, sites), caption


def distance(value: float | None, origin: float | None, unit: float) -> float | None:
    """How many units a value lies above its origin; None without a value, an origin or a unit."""
    if value is None or origin is None or unit == 0:
        return None
    return (value - origin) / unit


def figure(
    study: Study,
    grid: CellValues,
    steps: Steps,
    title: str,
    subtitle: str,
    sites: list[str],
    first_columns: list[str] | None = None,
) -> Any:
    """The matrix of a grid; an empty grid gives a note instead."""
    names = [*(first_columns or []), *study.config.saes]
    if all(value is None for value, _ in grid.values()):
        return charts.nothing(title, "No values: see the coverage table")
    return matrix(
        list(cells(grid, steps)),
        study.variants,
        names,
        steps,
        columns=columns_for(len(sites), len(names)),
        title=title,
        subtitle=subtitle,
    )
