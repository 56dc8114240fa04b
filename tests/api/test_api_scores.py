from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

import nullsae

RNG = np.random.default_rng(0)


def symmetric(mean: float, sd: float, n: int) -> np.ndarray:
    """Return scores without skewness, so that intervals are exactly Student's."""
    half = RNG.normal(0, sd, n // 2)
    return mean + np.concatenate([half, -half])


def test_the_interval_of_two_samples_of_latents_is_welchs() -> None:
    real, null = symmetric(0.8, 0.1, 60), symmetric(0.6, 0.2, 40)
    found = nullsae.contrast(real, null, margin=0.05)
    welch = scipy.stats.ttest_ind(null, real, equal_var=False).confidence_interval()
    assert found.difference == pytest.approx(null.mean() - real.mean())
    assert found.interval == pytest.approx((welch.low, welch.high))
    assert nullsae.verdict(found).word == "separates"


def test_the_interval_of_several_draws_is_that_of_their_means() -> None:
    # Seeds vary by more than their latents do.
    real = [RNG.normal(m, 0.1, n) for m, n in ((0.75, 50), (0.8, 60), (0.85, 70))]
    null = [RNG.normal(m, 0.1, 50) for m in (0.58, 0.62, 0.65, 0.6)]
    found = nullsae.contrast(real, null, margin=0.05)
    means = [np.array([one.mean() for one in arm]) for arm in (null, real)]
    test = scipy.stats.ttest_ind(*means, equal_var=False)
    low, high = test.confidence_interval()
    # Latents of a seed are slightly skewed.
    assert found.interval == pytest.approx((low, high), rel=1e-4)
    assert found.row["p_value"] == pytest.approx(test.pvalue, rel=1e-3)
    assert found.row["speaks_of"] == "draws of null, seeds of one draw of real"
    by_key = {(draw, 0): one for draw, one in enumerate(null)}
    assert nullsae.contrast(real, by_key, margin=0.05).interval == found.interval


def test_paired_latents_are_compared_by_their_differences() -> None:
    base, change = RNG.normal(0.7, 0.2, 50), symmetric(-0.1, 0.02, 50)
    found = nullsae.contrast(base, base + change, margin=0.02, paired=True)
    interval = scipy.stats.ttest_1samp(change, 0).confidence_interval()
    assert found.interval == pytest.approx((interval.low, interval.high))
    apart = nullsae.contrast(base, base + change, margin=0.02)
    assert nullsae.verdict(found).word == "separates"
    assert nullsae.verdict(apart).word == "inconclusive"


def test_documents_are_paired_by_their_place() -> None:
    base, change = RNG.normal(0.7, 0.2, 200), symmetric(-0.1, 0.05, 200)
    found = nullsae.contrast(base, base + change, "document", margin=0.02)
    error = change.std(ddof=1) / np.sqrt(len(change))
    assert found.row["standard_error"] == pytest.approx(error, rel=0.03)
    turned = nullsae.contrast(base, RNG.permutation(base + change), "document", margin=0.02)
    assert turned.row["standard_error"] > 3 * error


@pytest.mark.parametrize(
    ("null", "direction", "word"),
    [
        (0.5, None, "separates"),
        (0.5, -1, "reversed"),
        (0.5, 0, "separates"),
        (1.1, None, "reversed"),
        (0.8, None, "equivalent"),
        (0.75, None, "inconclusive"),
    ],
)
def test_a_verdict_tells_on_which_side_of_the_margin_the_difference_is(
    null: float, direction: Any, word: str
) -> None:
    scores = [symmetric(mean, 0.02, 40) for mean in (0.8, null)]
    found = nullsae.contrast(*scores, margin=0.05, direction=direction)
    said = nullsae.verdict(found)
    assert said.word == word
    assert "0.05, as given" in said.reason


def test_a_metric_supplies_margin_floor_and_direction() -> None:
    real, null = symmetric(0.9, 0.05, 40), symmetric(0.5, 0.05, 40)
    found = nullsae.contrast(real, null, metric="auroc", names=("trained", "step0"))
    assert found.row["margin"] == pytest.approx(0.1 * (real.mean() - 0.5))
    assert found.row["margin_rule"] == "0.1 of |trained - 0.5|"
    entropy = nullsae.contrast(null, real, metric="peak_token_share")
    assert nullsae.verdict(entropy).word == "separates"
    # A margin that no null can exceed is refused.
    wide = nullsae.contrast(real, null, metric="auroc", margin=0.45)
    assert nullsae.verdict(wide).word == "inconclusive"
    assert "the margin 0.45 cannot be exceeded" in nullsae.verdict(wide).reason


def test_a_family_is_corrected_by_holm() -> None:
    real = [symmetric(0.8, 0.05, 40) + shift for shift in (-0.02, 0.0, 0.02)]
    nulls = [
        [symmetric(mean, 0.05, 40) + s for s in (-0.03, 0, 0.03)] for mean in (0.715, 0.712, 0.6)
    ]
    family = [nullsae.contrast(real, null, margin=0.02) for null in nulls]
    alone = [one.row["p_minimum_effect"] for one in family]
    assert alone == sorted(alone, reverse=True)
    last, middle, first = alone
    expected = [3 * first, max(3 * first, 2 * middle), max(3 * first, 2 * middle, last)]
    for one, p in zip(family[::-1], expected, strict=True):
        said = nullsae.verdict(one, family)
        assert "Holm-corrected over 3" in said.reason
        assert (said.word == "separates") == (p <= 0.05)
    words = [nullsae.verdict(one, family).word for one in family]
    assert words == ["inconclusive", "inconclusive", "separates"]
    assert [nullsae.verdict(one).word for one in family] == 3 * ["separates"]


def test_one_draw_has_no_p_values_and_a_reason() -> None:
    found = nullsae.contrast(symmetric(0.8, 0.1, 40), symmetric(0.5, 0.1, 40), margin=0.05)
    assert found.row["p_value"] is None
    assert nullsae.verdict(found).reason.startswith("this randomization: ")


@pytest.mark.parametrize(
    ("arguments", "keys", "said"),
    [
        (([1.0, 2.0], [1.0, 2.0]), {}, "contrast: margin: missing"),
        (([1.0, 2.0], [1.0, 2.0]), {"margin": -1.0}, "contrast: margin: -1.0"),
        (([1.0, 2.0], [1.0, np.nan]), {"margin": 1.0}, "null: 1 of 2 scores are NaN or infinite"),
        (([1.0, 2.0], []), {"margin": 1.0}, r"null: scores are \[0\], should be \[n_units\]"),
        (([[[1.0]]], [1.0]), {"margin": 1.0}, r"real: scores are \[1, 1\]"),
        (([1.0, 2.0], [1.0]), {"margin": 1.0, "paired": True}, "some arrays have 1 scores, others"),
        (([1.0, 2.0], [1.0]), {"margin": 1.0, "unit": "document"}, "documents are paired by their"),
        (([1.0], [1.0]), {"metric": "explained_variance"}, "is not one of the means over latents"),
        (([1.0], [1.0]), {"margin": 1.0, "unit": "token"}, "unit: 'token' is not one of latent"),
        (([1.0], [1.0]), {"margin": 1.0, "direction": 2}, "direction: 2 is not one of -1, 0, 1"),
        (([1.0], [1.0]), {"margin": 1.0, "confidence": 2}, "contrast: confidence: 2"),
        (
            ([1.0, 2.0], [[1.0, 2.0], [2.0, 1.0]]),
            {"margin": 1.0, "paired": True},
            "both sides need equally many arrays: real 1, null 2",
        ),
    ],
)
def test_wrong_arguments_are_one_line(arguments: Any, keys: Any, said: str) -> None:
    with pytest.raises(nullsae.UserError, match=said) as caught:
        nullsae.contrast(*arguments, **keys)
    assert "\n" not in str(caught.value)


def test_seeds_of_both_arms_are_pooled() -> None:
    """Variance components of a one-way layout (Searle, Casella & McCulloch 1992, section 3.6)."""
    rng = np.random.default_rng(1)
    real = [rng.normal(m, 0.1, 50) for m in (0.75, 0.8, 0.88)]
    null = [rng.normal(m, 0.1, 40) for m in (0.61, 0.6, 0.59)]
    scores = {(0, seed): one for seed, one in enumerate(null)}
    own, other = ([one.var(ddof=1) / len(one) / len(arm) for one in arm] for arm in (real, null))
    squares = [np.var([one.mean() for one in arm], ddof=1) for arm in (real, null)]
    # Pooled over both arms: three seeds, two degrees of freedom.
    of_seeds = np.mean(squares) - np.mean([np.sum(own), np.sum(other)])
    assert of_seeds > 0
    variance = 2 * of_seeds / 3 + (np.sum(own) + np.sum(other)) / 3
    found = nullsae.contrast(real, scores, margin=0.05)
    assert found.row["standard_error"] == pytest.approx(np.sqrt(variance), rel=1e-9)
    # An arm of one seed gets the other's variance of seeds, not only that of its latents.
    alone = nullsae.contrast(real[0], scores, margin=0.05).row
    of_seeds = max(0.0, squares[1] - np.sum(other))
    variance = of_seeds * (1 + 1 / 3) + own[0] * 3 + np.sum(other) / 3
    assert alone["standard_error"] == pytest.approx(np.sqrt(variance), rel=1e-9)
    assert "by the variance of other arms' seeds" in alone["speaks_of"]
