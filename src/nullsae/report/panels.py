"""How the panels of a figure are named, ordered and filled, with a panel for each SAE and site."""

from __future__ import annotations

from collections.abc import Mapping

from nullsae.report import charts
from nullsae.report.study import Row, Study, mean

LEVELS = ("explainer", "scorer", "sae", "site", "variant")
"""What rows are sorted by."""


def panel(study: Study, row: Row, site: str = "") -> str:
    """What stands above a panel: the site, and the levels that the study has more than one of."""
    parts = [site] if site else []
    if len(study.config.saes) > 1:
        parts.append(row["sae"])
    if row.get("explainer") is not None:
        parts.append(f"{row['explainer']}, {row['scorer']}")
    return " · ".join(parts) or "all sites"


def columns(study: Study, subject: str) -> int:
    """Panels side by side: sites, so that a row is one SAE, explainer and scorer."""
    n_sites = len(study.config.subjects[subject].sites)
    return 3 if n_sites in (5, 6) else min(n_sites, charts.MAX_COLUMNS)


def shading(study: Study) -> str:
    """What is shaded in charts with a line for each variant: a sentence of their captions."""
    banded = " of trained" if len(study.variants) > charts.MAX_BANDS else ""
    return f" Shaded: the {level(study)}{banded}."


def level(study: Study) -> str:
    """What intervals are."""
    return f"{100 * study.config.statistics.confidence:g}% bootstrap interval"


def averages(
    study: Study, subject: str, rows: list[Row], quantities: Mapping[str, str]
) -> list[Row]:
    """Columns of SAEs' rows, averaged over draws and seeds, one row per panel and quantity."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=study.order(subject, *LEVELS)):
        cells.setdefault((panel(study, row, row["site"]), row["variant"]), []).append(row)
    return [
        {"panel": panel, "variant": variant, "quantity": quantity, "value": value}
        for (panel, variant), own in cells.items()
        for quantity, column in quantities.items()
        if (value := mean(row[column] for row in own)) is not None
    ]
