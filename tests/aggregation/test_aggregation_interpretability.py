from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from nullsae import tables
from nullsae.aggregation.arms import Arms
from nullsae.aggregation.cells import Units
from nullsae.aggregation.interpretability import interpretability
from nullsae.config.metrics import all_metrics
from nullsae.config.parse import parse_config
from nullsae.config.statistics import Statistics
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.statistics.baselines import (
    applies,
    lexical_baseline,
    no_gain,
    study_metrics,
    swapped_baselines,
)

CONFIG = Path(__file__).parents[2] / "config.yaml"
METRIC = {metric.name: metric for metric in all_metrics()}
SAE = {
    "subject": "small",
    "variant": "trained",
    "draw": "0",
    "site": "resid_post.1",
    "sae": "topk",
    "seed": "0",
}
GROUP = ("small", "resid_post.1", "topk")
FILLERS = {pa.int64(): 1, pa.float64(): 0.5, pa.string(): "text", pa.bool_(): True}
NAN = float("nan")


def study(**changes: Any) -> Config:
    data = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    data["explainers"] = {
        "pairs": {"kind": "lexical", "context": "bigram"},
        "tokens": {"kind": "lexical"},
        "others": {"kind": "swapped", "of": "pairs"},
    }
    data["scorers"] = {"detection": {"kind": "detection"}, "fuzzing": {"kind": "fuzzing"}}
    data["evaluation"] = {"gaussian_floors": False}
    return parse_config(data | changes)


def units(table: str, keys: dict[str, str], rows: list[dict[str, Any]]) -> Units:
    schema = tables.cell_schema(table)
    filled = {f.name: FILLERS[f.type] for f in schema if not pa.types.is_list(f.type)}
    whole = pa.Table.from_pylist([filled | row for row in rows], schema=schema)
    return Units(keys, whole, "latent")


def latents(*rows: tuple[float | None, float | None]) -> Units:
    """Return a cell of sampled latents 0, 1, ... with (token entropy, peak token share)."""
    found = [
        {
            "latent": i,
            "token_entropy_corrected_bits": entropy,
            "peak_token_share": peak,
            "firing_share": 0.01 * (i + 1),
            "sampled": True,
        }
        for i, (entropy, peak) in enumerate(rows)
    ]
    return units("latents", SAE, found)


def scores(
    explainer: str, aurocs: dict[int, float | None], scorer: str = "detection", n: int = 100
) -> Units:
    rows = [
        {"latent": latent, "auroc": auroc, "n_active": n, "n_silent": 100}
        for latent, auroc in aurocs.items()
    ]
    return units("scores", {**SAE, "explainer": explainer, "scorer": scorer}, rows)


def table_of(config: Config, *cells: Units, of: Units) -> dict[str, list[dict[str, Any]]]:
    found = interpretability(config, config.statistics, list(cells), [of])
    return {cell.keys["explainer"]: cell.table.to_pylist() for cell in found}


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


THREE = latents((5.0, 0.2), (1.0, 0.95), (4.0, 0.3))


def test_each_explainer_is_compared_with_tokens_and_its_swapped_one() -> None:
    found = table_of(
        study(),
        scores("pairs", {2: 0.9, 0: 0.8, 1: 0.7}),
        scores("tokens", {0: 0.6, 1: 0.75, 2: 0.5}),
        scores("others", {0: 0.5, 1: 0.55, 2: 0.45}),
        of=THREE,
    )
    pairs = found["pairs"]
    assert column(pairs, "latent") == [0, 1, 2]
    assert column(pairs, "lexical_auroc") == [0.6, 0.75, 0.5]
    assert column(pairs, "gain_over_lexical") == pytest.approx([0.2, -0.05, 0.4])
    assert column(pairs, "swapped_auroc") == [0.5, 0.55, 0.45]
    assert column(pairs, "discrimination") == pytest.approx([0.3, 0.15, 0.45])
    assert column(pairs, "token_entropy_bits") == [5.0, 1.0, 4.0]
    assert column(pairs, "firing_share") == pytest.approx([0.01, 0.02, 0.03])
    # Both bounds, 4 bits and 0.8, are inclusive.
    assert column(pairs, "is_abstract") == [True, False, True]
    assert column(pairs, "reason") == [None] * 3

    tokens = found["tokens"]
    assert column(tokens, "gain_over_lexical") == column(tokens, "lexical_auroc") == [None] * 3
    assert tokens[0]["reason"] == (
        "gain_over_lexical: the lexical explainer itself; discrimination: no swapped explanations"
    )
    assert column(tokens, "is_abstract") == [False, False, False]
    others = found["others"]
    assert others[0]["reason"] == (
        "gain_over_lexical: swapped explanations; discrimination: swapped explanations"
    )


def test_scorers_are_compared_with_themselves() -> None:
    config = study()
    cells = [
        scores("pairs", {0: 0.9}, "fuzzing"),
        scores("tokens", {0: 0.6}, "detection"),
        scores("tokens", {0: 0.8}, "fuzzing"),
    ]
    (found, *_) = interpretability(config, config.statistics, cells, [THREE])
    assert found.table["gain_over_lexical"].to_pylist() == pytest.approx([0.1])


def test_latents_judged_on_different_windows_are_not_compared() -> None:
    found = table_of(
        study(),
        scores("pairs", {0: 0.8, 1: 0.7}),
        scores("tokens", {0: 0.6, 1: 0.5}, n=99),
        scores("others", {0: 0.5, 1: 0.4}),
        of=THREE,
    )
    pairs = found["pairs"]
    assert column(pairs, "gain_over_lexical") == column(pairs, "lexical_auroc") == [None, None]
    assert column(pairs, "discrimination") == pytest.approx([0.3, 0.3])
    assert pairs[0]["reason"] == (
        "gain_over_lexical: the two were judged on different numbers of windows"
    )


@pytest.mark.parametrize("missing", [None, NAN])
def test_missing_values_are_null_with_a_reason(missing: float | None) -> None:
    found = table_of(
        study(),
        scores("pairs", {0: missing, 1: 0.9, 2: 0.9}),
        scores("tokens", {0: 0.6, 1: missing}),
        scores("others", {0: 0.5, 1: 0.6, 2: 0.6}),
        of=latents((5.0, 0.2), (missing, 0.9), (4.5, 0.1)),
    )
    pairs = found["pairs"]
    assert column(pairs, "auroc") == [None, 0.9, 0.9]
    assert column(pairs, "gain_over_lexical") == [None, None, None]
    assert column(pairs, "discrimination") == [None, pytest.approx(0.3), pytest.approx(0.3)]
    assert column(pairs, "is_abstract") == [None, None, True]
    assert [row["reason"] for row in pairs] == [
        "no auroc",
        "no token entropy; gain_over_lexical: the other explanation has no auroc",
        "gain_over_lexical: the other explanation was not scored",
    ]


def test_an_explainer_without_any_score_has_no_rows() -> None:
    found = table_of(study(), scores("pairs", {}), scores("tokens", {0: 0.5}), of=THREE)
    assert found["pairs"] == []


def test_a_scored_latent_missing_from_the_sae_is_one_line() -> None:
    with pytest.raises(UserError, match=r"latent 7 is not in the table of latents") as caught:
        table_of(study(), scores("pairs", {7: 0.5}), of=THREE)
    assert str(caught.value).startswith("results/scores/")
    assert "\n" not in str(caught.value)


def test_metrics_of_latents_come_from_their_columns() -> None:
    config = study()
    cells = [
        scores("pairs", {0: 0.9, 1: 0.7, 2: 0.8}),
        scores("tokens", {0: 0.6, 1: 0.75, 2: 0.5}),
    ]
    found = interpretability(config, config.statistics, cells, [THREE])
    sources = {"scores": cells, "latents": [THREE], "interpretability": found, "documents": []}
    arms = Arms(sources, Statistics())
    keys = (*GROUP, "pairs", "detection")
    gain = arms.arm(METRIC["gain_over_lexical"], keys, "trained")
    assert gain.value() == pytest.approx((0.3 - 0.05 + 0.3) / 3)
    assert arms.arm(METRIC["abstract_share"], keys, "trained").value() == pytest.approx(2 / 3)
    # Entropy 5, 1, 4 and AUROC 0.9, 0.7, 0.8 have the same ranks.
    rank = arms.arm(METRIC["entropy_auroc_correlation"], keys, "trained")
    assert rank.value() == pytest.approx(1.0)
    (cell,) = gain.cells
    assert cell.strata is not None
    assert list(cell.strata) == [-4, -4, -4]
    plain = (*GROUP, None, None)
    assert arms.arm(METRIC["single_token_share"], plain, "trained").value() == pytest.approx(1 / 3)
    nothing = arms.arm(METRIC["discrimination"], keys, "trained")
    assert (nothing.n_units, nothing.cells[0].n_null) == (0, 3)


def test_nan_does_not_count_as_a_latent_below_the_bound() -> None:
    arms = Arms({"latents": [latents((1.0, NAN), (1.0, 0.95))], "documents": []}, Statistics())
    arm = arms.arm(METRIC["single_token_share"], (*GROUP, None, None), "trained")
    assert not arm.cells[0].is_finite


def test_a_latent_without_a_firing_share_is_in_no_bin() -> None:
    schema = tables.cell_schema("latents")
    table = THREE.table.set_column(
        schema.get_field_index("firing_share"),
        schema.field("firing_share"),
        pa.array([0.01, NAN, 0.0]),
    )
    arms = Arms({"latents": [Units(SAE, table, "latent")], "documents": []}, Statistics())
    arm = arms.arm(METRIC["peak_token_share"], (*GROUP, None, None), "trained")
    assert arm.cells[0].strata is None
    assert arm.value() == pytest.approx((0.2 + 0.95 + 0.3) / 3)


def test_which_metrics_a_study_has_follows_from_its_explainers() -> None:
    config = study()
    assert lexical_baseline(config) == "tokens"
    assert swapped_baselines(config) == {"pairs": "others"}
    names = study_metrics(config)
    assert [m.name for m in all_metrics() if m.name not in names] == ["above_floors"]
    floors = study(evaluation={"gaussian_floors": True})
    assert "above_floors" in study_metrics(floors)
    gain, discrimination = METRIC["gain_over_lexical"], METRIC["discrimination"]
    assert [applies(gain, config, e) for e in ("pairs", "tokens", "others", "none")] == [
        *(True, False, False, False),
    ]
    assert [applies(discrimination, config, e) for e in ("pairs", "tokens", "others")] == [
        *(True, False, False),
    ]
    for name in ("abstract_share", "entropy_auroc_correlation"):
        found = [applies(METRIC[name], config, e) for e in ("pairs", "others", "none")]
        assert found == [True, False, True]
    assert applies(METRIC["auroc"], config, "others")
    assert not applies(gain, config, None)
    assert not applies(METRIC["cosine"], config, "pairs")
    alone = study(explainers={"tokens": {"kind": "lexical"}})
    assert {"gain_over_lexical", "discrimination"}.isdisjoint(study_metrics(alone))
    unscored = study_metrics(study(explainers={}, scorers={}))
    assert "cosine" in unscored
    assert "auroc" not in unscored


def test_columns_are_looked_up_by_latent() -> None:
    cell = scores("pairs", {5: 0.1, 2: 0.2, 9: None})
    assert list(cell.ids) == [2, 5, 9]
    found = cell.looked_up("auroc", np.array([9, 2, 3, 11, 5]))
    assert found == pytest.approx([NAN, 0.2, NAN, NAN, 0.1], nan_ok=True)


def test_a_scorer_with_its_own_placebo_is_compared_with_it() -> None:
    judge = {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": None}
    config = study(
        scorers={"detection": {"kind": "detection"}, "odd": {"kind": "intruder", "judge": judge}}
    )
    rows = [
        {"latent": 0, "auroc": 0.9, "placebo_auroc": 0.6},
        {"latent": 1, "auroc": 0.5, "placebo_auroc": None},
        {"latent": 2, "auroc": None, "placebo_auroc": 0.5},
    ]
    odd = units("scores", {**SAE, "explainer": "none", "scorer": "odd"}, rows)
    (found,) = table_of(config, odd, of=THREE).values()
    assert column(found, "swapped_auroc") == [0.6, None, 0.5]
    assert column(found, "discrimination") == pytest.approx([0.3, None, None])
    assert "discrimination: the placebo has no auroc" in found[1]["reason"]
    assert applies(METRIC["discrimination"], config, "none")
    assert not applies(METRIC["discrimination"], study(), "none")


def test_explanations_of_the_output_side_are_compared_with_their_placebo_only() -> None:
    """Token statistics do not predict what comes next, so no gain over them is computed."""
    config = study(
        explainers={
            "lexical": {"kind": "lexical"},
            "promoted": {"kind": "promoted"},
            "other": {"kind": "swapped", "of": "promoted"},
        },
        scorers={"detection": {"kind": "detection"}, "next": {"kind": "continuation"}},
    )
    assert no_gain(config, "promoted") == no_gain(config, "other")
    assert no_gain(config, "promoted") == "explanations of the output side"
    names = {m.name for m in all_metrics() if applies(m, config, "promoted")}
    assert {"auroc", "discrimination", "entropy_auroc_correlation"} <= names
    assert "gain_over_lexical" not in names
    assert "gain_over_lexical" not in {m.name for m in all_metrics() if applies(m, config, "other")}
