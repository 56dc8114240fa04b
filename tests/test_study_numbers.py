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
    table = script.summaries_table(pd.DataFrame(rows), "topk").splitlines()
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


def controls() -> dict[str, pd.DataFrame]:
    """Two recipes on two variants, with the numbers of other sites, seeds and draws in the way."""
    rows = [
        {**summary(variant, value), "sae": recipe, "site": site, "metric": "explained_variance"}
        | {"explainer": None, "scorer": None}
        for recipe, one in (("topk", 0.9), ("pca", 0.7))
        for variant, value in (("trained", one), ("gaussian", one - 0.5))
        for site in ("resid_post.9", "resid_post.10")
    ]
    rows += [{**row, "site": "resid_post.9", "value": 0.1} for row in rows]
    cells = [
        {"sae": "topk", "site": "resid_post.10", "seed": seed, "draw": draw, "variant": variant}
        for seed in (0, 1)
        for draw in (0, 1)
        for variant in ("trained", "gaussian")
    ]
    first = {(0, 0)}
    return {
        "summaries": pd.DataFrame(rows),
        "models": pd.DataFrame({"variant": ["trained"], "draw": [0], "heldout_loss_nats": [3.5]}),
        "reconstruction": pd.DataFrame(
            [{**cell, "token_lookup_r2": 0.25 + cell["seed"] + cell["draw"]} for cell in cells]
        ),
        "cross_evaluation": pd.DataFrame(
            [
                {**cell, "evaluated_on": on, "evaluated_on_draw": draw}
                | {
                    "explained_variance_rescaled": len(on) / 10
                    if (cell["seed"], draw) in first
                    else 9.0
                }
                for cell in cells
                if not cell["draw"]
                for on in ("trained", "gaussian")
                for draw in (0, 1)
            ]
        ),
    }


def test_a_row_of_a_variant_has_the_numbers_of_the_recipe_at_the_site(script):
    table = script.variants_table(controls(), "topk", "resid_post.10").splitlines()
    assert table[2] == "| `trained` | 3.500 | 0.250 | 0.900 | - | - | - | - |"
    assert table[3] == "| `gaussian` | - | 0.250 | 0.400 | - | - | - | - |"
    assert len(table) == 4


def test_a_row_of_a_recipe_has_its_value_in_each_variant(script):
    of = script.Row("explained_variance", digits=2)
    table = script.recipes_table(controls()["summaries"], of, "resid_post.10").splitlines()
    values = {line.split(" | ")[0]: line.split(" | ")[1:] for line in table[2:]}
    at = [script.SHOWN.index(name) for name in ("trained", "gaussian")]
    assert [values["| `topk`"][i].rstrip(" |") for i in at] == ["0.90", "0.40"]
    assert [values["| `pca`"][i].rstrip(" |") for i in at] == ["0.70", "0.20"]


def test_an_sae_stands_in_its_row_under_the_variants_that_it_reads(script):
    crossed = controls()["cross_evaluation"]
    assert script.transfer_table(crossed, "topk", "resid_post.10").splitlines() == [
        "| trained on | `trained` | `gaussian` |",
        "| --- | --- | --- |",
        "| `trained` | 0.70 | 0.80 |",
        "| `gaussian` | 0.70 | 0.80 |",
    ]
