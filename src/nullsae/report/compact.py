"""The figures of a study with many SAEs: matrices of variants by SAEs instead of one panel each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nullsae.config.metrics import Metric
from nullsae.report import charts
from nullsae.report.kinds import FigureKind
from nullsae.report.matrix import Grid, cells, columns_for, differences, matrix
from nullsae.report.study import Study, thin

Cells = Mapping[str, tuple[float | None, float | None]]
"""Column to the printed value and the value shown by the cell's colour."""

MAX_SITES = 6
MAX_CELLS = 1800
"""Cells of a figure; with more, fewer sites are drawn, which limits the page's size."""


def which_sites(study: Study, subject: str, drawn: list[str]) -> str:
    """Return a sentence that names the drawn sites, if some are left out."""
    n_sites = len(study.config.subjects[subject].sites)
    if len(drawn) == n_sites:
        return ""
    return f" Drawn for {len(drawn)} of {n_sites} sites: {', '.join(drawn)}."


def metric_matrix(study: Study, subject: str, metric: Metric) -> tuple[Any, str]:
    """Return chart and caption of a metric of `summaries`, by site, explainer and scorer."""
    config = study.config
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    if metric.is_scored:
        pairs = list(config.scored_pairs())
    margin = config.statistics.margin
    sites = _drawn_sites(study, subject, len(study.variants) * len(config.saes) * len(pairs))
    values = {
        tuple(row[key] for key in ("explainer", "scorer", "site", "sae", "variant")): row["value"]
        for row in study.rows("summaries", subject=subject, metric=metric.name)
    }
    grid: Grid = {}
    for pair in pairs:
        for site in sites:
            panel = site if pair[0] is None else f"{site} · {pair[0]}, {pair[1]}"
            for sae in config.saes:
                trained = values.get((*pair, site, sae, "trained"))
                unit = 0.0 if trained is None else margin(metric.name, trained)
                for variant in study.variants:
                    value = values.get((*pair, site, sae, variant))
                    grid[panel, variant, sae] = value, distance(value, trained, unit)
    caption = (
        f"{metric.definition} {metric.reading} Each column is one SAE. The colour shows the "
        f"distance from trained in the same column, in margins "
        f"({config.statistics.margin_rule(metric.name)}): uncoloured cells "
        f"are less than one margin away. For the certainty of differences, see the verdicts."
        f"{which_sites(study, subject, sites)}"
    )
    titles = (metric.title, "mean per variant and SAE", "minus trained, in margins")
    return _drawn(study, grid, len(sites), list(config.saes), titles), caption


def distance(value: float | None, origin: float | None, unit: float) -> float | None:
    """Return the distance of a value from its origin in units; None if a number is missing."""
    if value is None or origin is None or unit == 0:
        return None
    return (value - origin) / unit


def draw(
    study: Study,
    subject: str,
    kind: FigureKind,
    in_row: Callable[[str, str], Cells],
    *,
    subtitle: str,
    ground: str,
    caption: str,
    first_columns: tuple[str, ...] = (),
) -> tuple[Any, str]:
    """Return chart and caption of a kind of figure, one panel per drawn site.

    Args:
        study: the whole study.
        subject: one of its subjects.
        kind: gives the title and the start of the caption.
        in_row: maps a site and a variant to a cell for each SAE and each of the first columns.
        subtitle: of the figure.
        ground: what the colour shows, for the legend.
        caption: what follows the caption of the kind.
        first_columns: those before the SAEs.
    """
    columns = [*first_columns, *study.config.saes]
    sites = _drawn_sites(study, subject, len(study.variants) * len(columns))
    grid = {
        (site, variant, column): cell
        for site in sites
        for variant in study.variants
        for column, cell in in_row(site, variant).items()
    }
    chart = _drawn(study, grid, len(sites), columns, (kind.title, subtitle, ground))
    return chart, f"{kind.caption} {caption}{which_sites(study, subject, sites)}"


def _drawn_sites(study: Study, subject: str, cells_per_site: int) -> list[str]:
    """List the sites that fit into a figure, evenly spread."""
    n = max(1, min(MAX_SITES, MAX_CELLS // cells_per_site))
    return thin(study.config.subjects[subject].sites, n)


def _drawn(
    study: Study, grid: Grid, n_sites: int, columns: list[str], titles: tuple[str, str, str]
) -> Any:
    """Draw the matrix of a grid with title, subtitle and legend title; or a note if it is empty."""
    title, subtitle, ground = titles
    if all(value is None for value, _ in grid.values()):
        return charts.nothing(title, "No values: see the coverage table")
    frame = charts.Frame(columns_for(n_sites, len(columns)), title, subtitle)
    steps = differences(ground)
    return matrix(list(cells(grid, steps)), study.variants, columns, steps, frame)
