"""How the panels of a figure are named, ordered and filled, with a panel for each SAE and site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nullsae.config.study import NO_EXPLAINER
from nullsae.report import charts
from nullsae.report.study import Row, Study, mean


def panel(study: Study, row: Row, site: str = "") -> str:
    """What stands above a panel: the site, and the levels that the study has more than one of."""
    parts = [site] if site else []
    if len(study.config.saes) > 1:
        parts.append(row["sae"])
    if row.get("explainer") is not None:
        parts.append(f"{row['explainer']}, {row['scorer']}")
    return " · ".join(parts) or "all sites"


def sort_key(study: Study, subject: str) -> Callable[[Row], tuple[int, ...]]:
    """A key that brings rows into display order."""
    config = study.config
    orders: dict[str, dict[Any, int]] = {
        "explainer": {name: i for i, name in enumerate([*config.explainers, NO_EXPLAINER])},
        "scorer": {name: i for i, name in enumerate(config.scorers)},
        "sae": {name: i for i, name in enumerate(config.saes)},
        "site": {name: i for i, name in enumerate(config.subjects[subject].sites)},
        "variant": {name: i for i, name in enumerate(study.variants)},
    }
    return lambda row: tuple(order.get(row.get(key), -1) for key, order in orders.items())


def columns(study: Study, subject: str) -> int:
    """Panels side by side: sites, so that a row is one SAE, explainer and scorer."""
    n_sites = len(study.config.subjects[subject].sites)
    if n_sites <= charts.MAX_COLUMNS:
        return n_sites
    return 3 if n_sites in (5, 6) else charts.MAX_COLUMNS


def averages(study: Study, subject: str, quantities: dict[str, str]) -> list[Row]:
    """Columns of `reconstruction`, averaged over draws and seeds, one row per quantity."""
    cells: dict[tuple[str, str], list[Row]] = {}
    ordered = sorted(study.rows("reconstruction", subject=subject), key=sort_key(study, subject))
    for row in ordered:
        cells.setdefault((panel(study, row, row["site"]), row["variant"]), []).append(row)
    return [
        {"panel": panel, "variant": variant, "quantity": quantity, "value": value}
        for (panel, variant), rows in cells.items()
        for quantity, column in quantities.items()
        if (value := mean(row[column] for row in rows)) is not None
    ]
