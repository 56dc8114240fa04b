from __future__ import annotations

from pathlib import Path

from nullsae.config.metrics import METRICS
from nullsae.report.metrics_page import with_tables

PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def test_the_committed_page_is_what_the_metrics_give() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run `make docs`"
    for name, metric in METRICS.items():
        if metric.__module__.startswith(METRICS.folder):
            assert page.count(f"| `{name}` |") >= 1


def test_a_table_is_made_again_and_the_prose_around_it_stays() -> None:
    page = "before\n<!-- metrics: fidelity -->\nold\n<!-- end -->\nafter\n"
    found = with_tables(page)
    assert found.startswith("before\n<!-- metrics: fidelity -->\n| Metric |")
    assert found.endswith("| + | 10% |\n<!-- end -->\nafter\n")
    assert "old" not in found
