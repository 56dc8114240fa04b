"""The numbers of README and docs are those of the tables, whoever runs the script."""

import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    yield __import__("study_numbers")
    sys.modules.pop("study_numbers")


def summary(variant: str, value: float | None, low: float | None = None) -> dict[str, object]:
    high = None if low is None else 2 * value - low
    return {
        **{"sae": "topk", "metric": "auroc", "explainer": "lexical", "scorer": "fuzzing"},
        **{"site": "embed"},
        **{"variant": variant, "value": value, "low": low, "high": high},
    }


def test_a_row_has_each_variant_with_its_interval_in_the_order_of_variants(script):
    rows = [summary("step0", 0.5, 0.25), summary("trained", 0.875), summary("rerandomized", None)]
    table = script.summaries_table(pd.DataFrame(rows)).splitlines()
    assert table[0] == "|  | `trained` | `step0` | `rerandomized` |"
    assert table[2] == "| `auroc`, lexical, fuzzing, embed | 0.875 | 0.500 [0.250, 0.750] | - |"
    assert len(table) == 3


def test_what_stands_between_marks_is_replaced_and_nothing_else(script):
    page = "a\n<!-- numbers: x -->\nold\nold\n<!-- end of numbers -->\nb\n"
    filled = script.filled(page, {"x": "new"})
    assert filled == "a\n<!-- numbers: x -->\nnew\n<!-- end of numbers -->\nb\n"
    assert script.filled(filled, {"x": "new"}) == filled
    with pytest.raises(KeyError):
        script.filled(page, {})


def test_every_mark_of_a_page_has_its_text(script):
    marks = {
        name
        for page in script.PAGES
        for name in script.MARK.findall((REPOSITORY / page).read_text(encoding="utf-8"))
    }
    assert marks == {"answer", "models", "summaries", "power", "stages", "dictionaries"}
