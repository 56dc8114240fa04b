"""How the panels of a figure are named, ordered and filled, one for each SAE and site."""

from __future__ import annotations

from collections.abc import Mapping

from nullsae.report import charts
from nullsae.report.study import Row, Study, mean

LEVELS = ("explainer", "scorer", "sae", "site", "variant")
"""What rows are sorted by."""


def panel(study: Study, row: Row, site: str = "") -> str:
    """Return a panel's title: the site, and levels of which the study has more than one value."""
    parts = [site] if site else []
    if len(study.config.saes) > 1:
        parts.append(row["sae"])
    if row.get("explainer") is not None:
        parts.append(f"{row['explainer']}, {row['scorer']}")
    return " · ".join(parts) or "all sites"


def columns(study: Study, subject: str) -> int:
    """Return how many panels fit side by side: sites, so a row is one SAE, explainer, scorer."""
    n_sites = len(study.config.subjects[subject].sites)
    return 3 if n_sites in (5, 6) else min(n_sites, charts.MAX_COLUMNS)


def shading(study: Study) -> str:
    """Return a caption sentence on what is shaded in charts with one line per variant."""
    banded = " of trained" if len(study.variants) > charts.MAX_BANDS else ""
    return f" Shaded: the {level(study)}{banded}."


def level(study: Study) -> str:
    """Describe what intervals are."""
    return f"{100 * study.config.statistics.confidence:g}% bootstrap interval"


def averages(
    study: Study, subject: str, rows: list[Row], quantities: Mapping[str, str]
) -> list[Row]:
    """Average columns of SAEs' rows over draws and seeds, one row per panel and quantity."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=study.order(subject, *LEVELS)):
        cells.setdefault((panel(study, row, row["site"]), row["variant"]), []).append(row)
    return [
        {"panel": panel, "variant": variant, "quantity": quantity, "value": value}
        for (panel, variant), own in cells.items()
        for quantity, column in quantities.items()
        if (value := mean(row[column] for row in own)) is not None
    ]
