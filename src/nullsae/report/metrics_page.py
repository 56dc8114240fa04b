"""The tables of docs/metrics.md: `python -m nullsae.report.metrics_page docs/metrics.md`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from nullsae.config.metrics import METRICS, Metric, all_metrics

HEAD = ("Metric", "Formula", "Taken from", "Range", "Floor", "Direction", "Margin")
SIGNS = {1: "+", -1: "−", 0: "0"}  # noqa: RUF001
BLOCK = re.compile(r"(?<=<!-- metrics: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """Return a page with a section's table after each `<!-- metrics: SECTION -->`.

    Everything between it and the next `<!-- end -->` is replaced.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}{table(found[1])}", page)


def table(section: str) -> str:
    """Return the metrics of one section as Markdown, in display order, only nullsae's own."""
    rows = [HEAD, ("---",) * len(HEAD)]
    rows += [
        _row(metric)
        for metric in all_metrics()
        if metric.section == section and type(metric).__module__.startswith(METRICS.folder)
    ]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in rows)


def _row(metric: Metric) -> tuple[str, ...]:
    against = [f"{SIGNS[sign]} ({variant})" for variant, sign in metric.directions.items()]
    return (
        f"`{metric.name}`",
        (metric.formula or metric.definition).strip().replace("|", "\\|"),
        f"`{metric.table}`: {', '.join(f'`{name}`' for name in metric.columns)}",
        metric.values,
        metric.floor_text,
        ", ".join([SIGNS[metric.direction], *against]),
        f"{100 * metric.margin_share:g}%",
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        file = Path(name)
        file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
