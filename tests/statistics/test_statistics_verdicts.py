from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nullsae.outputs import EquivalenceMargins, Statistics
from nullsae.statistics.bootstrap import Arm, Cell
from nullsae.statistics.contrasts import Estimate, adjust, contrast_row, estimate, summary_row
from nullsae.statistics.metrics import METRICS
from nullsae.statistics.verdicts import verdict

METRIC = {metric.name: metric for metric in METRICS}
SETTINGS = Statistics(n_resamples=999)
NAN = float("nan")


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "n_draws": 1,
        "n_seeds": 2,
        "difference": -0.2,
        "difference_low": -0.25,
        "difference_high": -0.15,
        "p_holm": 0.01,
        "p_equivalence": 1.0,
        "equivalence_margin": 0.05,
        "reason": None,
    }
    return base | changes


def arm_of(*numbers: float, **keywords: Any) -> Arm:
    return Arm((Cell(0, 0, np.array(numbers)),), **keywords)


def estimated(arm: Arm, name: str = "auroc", seed: int = 0) -> Estimate:
    shared = np.random.default_rng(99) if arm.units_are_shared else None
    return estimate(arm, METRIC[name], SETTINGS, np.random.default_rng(seed), shared)


@pytest.mark.parametrize(
    ("metric", "changes", "expected"),
    [
        ("auroc", {}, "separates"),
        ("auroc", {"difference": 0.2}, "reversed"),
        ("peak_token_share", {}, "reversed"),  # trained latents should be less peaked
        ("peak_token_share", {"difference": 0.2}, "separates"),
        ("l1", {}, "separates"),
        ("l1", {"difference": 0.2}, "separates"),
        ("auroc", {"p_holm": 0.0501}, "inconclusive"),
        ("auroc", {"p_holm": 0.05}, "separates"),
        ("auroc", {"p_equivalence": 0.05}, "equivalent"),  # a small difference may be certain
        ("auroc", {"p_holm": 0.5, "p_equivalence": 0.051}, "inconclusive"),
        ("auroc", {"p_holm": None, "reason": "variant: no latents"}, "inconclusive"),
        ("auroc", {"difference": None, "p_equivalence": 0.001}, "inconclusive"),
    ],
)
def test_verdict_follows_the_rule(metric: str, changes: dict[str, Any], expected: str) -> None:
    word, reason = verdict(row(**changes), METRIC[metric], 0.95)
    assert word == expected
    assert "\n" not in reason
    if changes.get("reason"):
        assert changes["reason"] in reason


def test_verdict_names_the_numbers_it_rests_on() -> None:
    _, reason = verdict(row(), METRIC["auroc"], 0.95)
    assert reason == (
        "variant minus trained -0.2 [-0.25, -0.15] over 1 draw x 2 seeds of the variant, "
        "the sign expected: p_holm 0.01 <= 0.05"
    )


def test_level_follows_the_confidence() -> None:
    assert verdict(row(p_holm=0.1), METRIC["auroc"], 0.9)[0] == "separates"
    assert verdict(row(p_holm=0.02), METRIC["auroc"], 0.99)[0] == "inconclusive"


def test_contrast_of_clearly_different_arms_has_all_its_numbers() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.normal(0.9, 0.02, 30), rng.normal(0.6, 0.02, 30)
    trained, variant = estimated(arm_of(*high), seed=1), estimated(arm_of(*low), seed=2)
    found = contrast_row(trained, variant, METRIC["auroc"], SETTINGS)
    adjust([found], SETTINGS)
    assert found["difference"] == pytest.approx(low.mean() - high.mean(), abs=1e-12)
    assert found["difference_low"] < found["difference"] < found["difference_high"] < -0.2
    assert found["probability_of_superiority"] == 1.0
    assert found["p_value"] == found["p_holm"] == pytest.approx(2 / 1000)
    assert found["p_equivalence"] == 1.0
    assert found["reason"] is None
    assert verdict(found, METRIC["auroc"], 0.95)[0] == "separates"
    error = np.sqrt(high.var() / 30 + low.var() / 30)
    width = found["difference_high"] - found["difference_low"]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_equal_arms_are_equivalent_within_the_margin() -> None:
    rng = np.random.default_rng(2)
    trained = estimated(arm_of(*rng.normal(0.7, 0.02, 40)), seed=1)
    variant = estimated(arm_of(*rng.normal(0.7, 0.02, 40)), seed=2)
    settings = SETTINGS.model_copy(update={"equivalence_margins": EquivalenceMargins(auroc=0.03)})
    found = contrast_row(trained, variant, METRIC["auroc"], settings)
    adjust([found], settings)
    assert found["equivalence_margin"] == 0.03
    assert verdict(found, METRIC["auroc"], 0.95)[0] == "equivalent"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Cell(0, 0, np.empty(0)), "variant: no latents"),
        (Cell(0, 0, np.empty(0), n_null=7), "variant: auroc is null for all 7 latents"),
        (Cell(0, 0, np.array([0.5, NAN])), "variant: NaN or infinite auroc in draw 0, seed 0"),
        (Cell(0, 0, np.array([0.5, np.inf])), "variant: NaN or infinite auroc in draw 0, seed 0"),
    ],
)
def test_an_arm_without_a_value_gives_nulls_with_a_reason(cell: Cell, reason: str) -> None:
    trained, variant = estimated(arm_of(0.8, 0.9, 0.7)), estimated(Arm((cell,)))
    found = contrast_row(trained, variant, METRIC["auroc"], SETTINGS)
    adjust([found], SETTINGS)
    assert found["reason"] == reason
    assert found["trained"] == pytest.approx(0.8)
    nulls = ("value", "value_low", "difference", "difference_low", "p_value", "p_holm")
    assert [found[name] for name in (*nulls, "p_equivalence", "probability_of_superiority")] == (
        [None] * 8
    )
    assert summary_row(variant, METRIC["auroc"])["value"] is None
    word, why = verdict(found, METRIC["auroc"], 0.95)
    assert word == "inconclusive"
    assert reason in why


def test_one_unit_has_a_value_but_no_interval() -> None:
    trained, variant = estimated(arm_of(0.8, 0.9)), estimated(arm_of(0.5))
    found = contrast_row(trained, variant, METRIC["auroc"], SETTINGS)
    assert found["difference"] == pytest.approx(-0.35)
    assert (found["value"], found["value_low"], found["difference_low"]) == (0.5, None, None)
    assert found["p_value"] is None
    assert found["reason"] == "variant: one latent only: no interval"


def test_constant_arms_are_not_tested() -> None:
    trained, variant = estimated(arm_of(0.9, 0.9, 0.9)), estimated(arm_of(0.5, 0.5, 0.5))
    found = contrast_row(trained, variant, METRIC["auroc"], SETTINGS)
    assert found["difference"] == pytest.approx(-0.4)
    assert (found["difference_low"], found["p_value"], found["p_equivalence"]) == (None,) * 3
    assert "all 3 latents are equal" in found["reason"]
    assert "same in all resamples" in found["reason"]


def test_a_constant_arm_can_still_be_compared_with_one_that_varies() -> None:
    trained, variant = estimated(arm_of(0.9, 0.9, 0.9)), estimated(arm_of(0.5, 0.4, 0.6))
    found = contrast_row(trained, variant, METRIC["auroc"], SETTINGS)
    assert found["p_value"] == pytest.approx(2 / 1000)
    assert found["trained_low"] is None


def test_a_zero_denominator_gives_nulls_not_a_number() -> None:
    zeros = Arm((Cell(0, 0, np.ones(3), np.zeros(3)),), units_are_shared=True)
    found = estimated(zeros, "explained_variance")
    assert (found.value, found.low) == (None, None)
    assert found.reason == "squared_deviation sums to 0"
    # With one of two documents at 0, a quarter of the resamples is undefined.
    half = Arm((Cell(0, 0, np.ones(2), np.array([0.0, 4.0])),), units_are_shared=True)
    found = estimated(half, "explained_variance")
    assert (found.value, found.low) == (0.5, None)
    assert found.reason == "squared_deviation sums to 0 in some resamples: no interval"


def test_cells_that_are_left_out_are_named() -> None:
    cells = (Cell(0, 0, np.array([0.1, 0.2, 0.4])), Cell(0, 1, np.empty(0)))
    found = estimated(Arm(cells))
    assert found.value == pytest.approx(0.7 / 3)
    assert found.low is not None
    assert found.reason == "no latents in draw 0, seed 1, left out"


def test_complement_turns_superiority_round() -> None:
    # Squared errors: the trained arm's are smaller, so its explained variance is larger.
    below = np.full(4, 10.0)
    trained = Arm((Cell(0, 0, np.array([1.0, 2, 3, 2]), below),), complement=True)
    variant = Arm((Cell(0, 0, np.array([6.0, 5, 7, 6]), below),), complement=True)
    metric = METRIC["explained_variance"]
    settings = np.random.default_rng
    found = contrast_row(
        estimate(trained, metric, SETTINGS, settings(1)),
        estimate(variant, metric, SETTINGS, settings(2)),
        metric,
        SETTINGS,
    )
    assert found["probability_of_superiority"] == 1.0
    assert (found["trained"], found["value"]) == (pytest.approx(0.8), pytest.approx(0.4))


def test_holm_leaves_out_contrasts_without_a_p_value() -> None:
    rows = [{"p_value": p, "p_holm": None, "reason": None} for p in (0.01, None, 0.04)]
    adjust(rows, SETTINGS)
    assert [r["p_holm"] for r in rows] == [pytest.approx(0.02), None, pytest.approx(0.04)]


def test_too_few_resamples_for_a_family_are_reported() -> None:
    rows = [{"p_value": 2 / 1000, "p_holm": None, "reason": None} for _ in range(26)]
    adjust(rows, SETTINGS)
    assert rows[0]["p_holm"] == pytest.approx(0.052)
    assert "raise statistics.n_resamples" in rows[0]["reason"]
    rows = [{"p_value": 2 / 1000, "p_holm": None, "reason": None} for _ in range(25)]
    adjust(rows, SETTINGS)
    assert rows[0]["reason"] is None
