"""The verdict table as text."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from nullsae import paths, tables
from nullsae.schemas.study import VERDICTS

STYLES = {
    "separates": "green",
    "reversed": "red",
    "equivalent": "yellow",
    "inconclusive": "dim",
}


def print_verdicts(root: Path) -> None:
    """Print one row per metric, site and judge, one column per variant, and the report's path."""
    path = root / paths.TABLE.format(table="verdicts")
    rows = tables.read_table(path, VERDICTS).to_pylist()
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    keys = ("subject", "site", "sae", "metric", "explainer", "scorer")
    table = Table(title="Verdicts: does the metric tell trained from ...?", title_justify="left")
    for name in ("subject", "site", "sae", "metric"):
        table.add_column(name)
    for variant in variants:
        table.add_column(variant.replace("_", " "), max_width=16)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[name] or "" for name in keys)
        verdict, difference = row["verdict"], row["difference"]
        number = "" if difference is None else f" {difference:+.2f}"
        text = f"[{STYLES[verdict]}]{verdict}{number}[/]"
        cells.setdefault(key, {})[row["variant"]] = text
    for (subject, site, sae, metric, explainer, scorer), found in cells.items():
        judge = f" ({explainer}, {scorer})" if scorer else ""
        table.add_row(
            subject, site, sae, metric + judge, *(found.get(name, "") for name in variants)
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    console.print("The number is the difference, variant minus trained.")
    console.print(f"Report: {(root / paths.REPORT).resolve()}", soft_wrap=True)
