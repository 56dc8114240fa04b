from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from nullsae.config.metrics import Metric, all_metrics
from nullsae.config.statistics import EquivalenceMargins, MarginShares, Statistics
from nullsae.statistics.bootstrap import Arm, ArmCell, Resampler
from nullsae.statistics.contrasts import (
    P_VALUES,
    TESTED,
    Estimate,
    adjust,
    contrast_row,
    estimate,
    scope_of,
    summary_row,
)
from nullsae.statistics.matching import common_bins
from nullsae.statistics.permutation import Permuter
from nullsae.statistics.spread import Spread
from nullsae.statistics.verdicts import (
    CONTROL_RULE,
    RULE,
    VERDICT_WORDS,
    discriminating_power,
    replication_note,
    verdict,
)

METRIC = {metric.name: metric for metric in all_metrics()}
SETTINGS = Statistics(n_resamples=999)
NAN = float("nan")
NAMES = ("trained", "rerandomized")


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "n_draws": 1,
        "n_seeds": 2,
        "difference": -0.2,
        "difference_low": -0.25,
        "difference_high": -0.15,
        "is_beyond_margin": True,
        "is_within_margin": False,
        "p_minimum_effect_holm": 0.01,
        "p_equivalence_holm": 1.0,
        "margin": 0.05,
        "margin_rule": "0.1 of |trained - 0.5|",
        "n_family": 8,
        "detectable_difference": 0.0712,
        **{"stage": "model", "real": "trained", "null": "rerandomized"},
        "variant": "rerandomized",
        "speaks_of": "seeds of one draw",
        "scope": "this randomization",
        "not_comparable": None,
        "reason": None,
    }
    return base | changes


def arm_of(*numbers: float, **keywords: Any) -> Arm:
    return Arm((ArmCell(0, 0, (np.array(numbers),)),), **keywords)


def ratio(cells: list[tuple[list[float], list[float]]], **keywords: Any) -> Arm:
    parts = [ArmCell(i, 0, (np.array(a), np.array(b))) for i, (a, b) in enumerate(cells)]
    return Arm(tuple(parts), "ratio", units_are_shared=True, **keywords)


def estimated(arm: Arm, name: str = "auroc", settings: Statistics = SETTINGS) -> Estimate:
    return estimate(arm, METRIC[name], settings, Resampler(0, settings.n_resamples))


def contrast(
    trained: Arm, variant: Arm, name: str = "auroc", settings: Statistics = SETTINGS
) -> dict[str, Any]:
    arms = [estimated(arm, name, settings) for arm in (trained, variant)]
    bins = common_bins([trained, variant])
    permuter = Permuter(0, settings.n_resamples)
    found = {
        **{"stage": "model", "variant": "rerandomized", "not_comparable": None},
        "scope": scope_of("rerandomized", variant),
        **contrast_row(arms[0], arms[1], METRIC[name], settings, permuter, bins, names=NAMES),
    }
    adjust([found], "all", settings)
    return found


@pytest.mark.parametrize(
    ("metric", "changes", "expected"),
    [
        ("auroc", {}, "separates"),
        ("auroc", {"difference": 0.2}, "reversed"),
        ("peak_token_share", {}, "reversed"),  # trained latents should be less peaked
        ("peak_token_share", {"difference": 0.2}, "separates"),
        # Noise has no tokens that distinguish latents, so more entropy is expected of it.
        ("token_entropy_bits", {}, "separates"),
        ("token_entropy_bits", {"null": "noise_embeddings"}, "reversed"),
        ("token_entropy_bits", {"null": "gaussian", "difference": 0.2}, "separates"),
        ("peak_token_share", {"null": "noise_embeddings"}, "separates"),
        ("l1_ratio", {}, "separates"),
        ("l1_ratio", {"difference": 0.2}, "separates"),
        # For latents of another dictionary, no expectation about tokens is justified.
        ("peak_token_share", {"stage": "dictionary", "null": "pca"}, "separates"),
        ("auroc", {"stage": "dictionary", "null": "pca", "difference": 0.2}, "reversed"),
        ("auroc", {"stage": "explanation", "null": "swapped"}, "separates"),
        ("ablation_kl_log_ratio", {"stage": "effect", "null": "random_direction"}, "separates"),
        ("auroc", {"is_beyond_margin": False}, "inconclusive"),
        ("auroc", {"is_beyond_margin": False, "is_within_margin": True}, "equivalent"),
        ("auroc", {"is_beyond_margin": None, "reason": "rerandomized: no latents"}, "inconclusive"),
        ("auroc", {"difference": None, "is_within_margin": True}, "inconclusive"),
        ("auroc", {"not_comparable": "L0 is 16 and 30"}, "none"),
    ],
)
def test_verdict_follows_the_rule(metric: str, changes: dict[str, Any], expected: str) -> None:
    word, reason = verdict(row(**changes), METRIC[metric], 0.95)
    assert word == expected
    assert "\n" not in reason
    for why in ("reason", "not_comparable"):
        assert changes.get(why, "") in reason
    assert reason.startswith("this randomization: ")


def test_verdict_names_the_numbers_it_rests_on() -> None:
    _, reason = verdict(row(), METRIC["auroc"], 0.95)
    assert reason == (
        "this randomization: rerandomized minus trained -0.2 [-0.25, -0.15] over 1 draw x 2 seeds "
        "of rerandomized (the interval generalizes to seeds of one draw), beyond the margin ±0.05 "
        "(0.1 of |trained - 0.5|), on the expected side: minimum-effect test at 0.05, "
        "Holm-corrected over 8, p 0.01"
    )
    _, reason = verdict(row(p_minimum_effect_holm=None), METRIC["auroc"], 0.95)
    assert reason.endswith("Holm-corrected over 8")


@pytest.mark.parametrize(
    ("share", "said"),
    [(None, ""), (1.0, ""), (0.9, ""), (0.8963, "rests on 90% of"), (0.5, "rests on 50% of")],
)
@pytest.mark.parametrize("changes", [{}, {"is_beyond_margin": False}, {"difference": None}])
def test_a_verdict_says_how_few_windows_it_rests_on(
    share: float | None, said: str, changes: dict[str, Any]
) -> None:
    plain = verdict(row(**changes), METRIC["auroc"], 0.95)
    word, reason = verdict(row(answered_share=share, **changes), METRIC["auroc"], 0.95)
    assert word == plain[0]
    assert reason.startswith(plain[1])
    assert said in reason
    assert ("n_failed" in reason) == bool(said)


def test_an_inconclusive_verdict_says_what_could_have_been_detected() -> None:
    _, reason = verdict(row(is_beyond_margin=False), METRIC["auroc"], 0.95)
    assert reason.endswith(
        "neither beyond nor within the margin ±0.05 (0.1 of |trained - 0.5|) at 0.05, "
        "Holm-corrected over 8; could have detected 0.071 or more"
    )


def test_a_metric_of_the_model_has_no_verdict_on_samples_without_one() -> None:
    on_gaussian = row(null="gaussian", variant="gaussian", difference=None)
    word, reason = verdict(on_gaussian, METRIC["next_token_auroc"], 0.95)
    assert (word, reason) == (
        "none",
        "this randomization: no verdict: next_token_auroc has no value on gaussian, which is "
        "sampled without a model",
    )
    assert verdict(on_gaussian, METRIC["cosine"], 0.95)[0] == "inconclusive"


def test_the_rule_names_every_word() -> None:
    assert all(word.removesuffix("s") in RULE.lower() for word in VERDICT_WORDS)
    assert "\n" not in RULE + CONTROL_RULE


def with_p(**p_values: float) -> dict[str, Any]:
    numbers = {"standard_error": 0.1, "df": 20.0, "margin": 0.05, "p_permutation": None}
    flags = {"not_comparable": None, "is_replicated": True, "reason": None, "p_value": 0.5}
    return numbers | flags | {"p_minimum_effect": 1.0, "p_equivalence": 1.0} | p_values


@pytest.mark.parametrize(
    ("name", "own", "other"),
    [
        ("minimum_effect", "is_beyond_margin", "is_within_margin"),
        ("equivalence", "is_within_margin", "is_beyond_margin"),
    ],
)
def test_both_tests_are_corrected_alike(name: str, own: str, other: str) -> None:
    """Holm's example of three: 3 x .01, then the larger of it and 2 x .02, then of that and .04."""
    rows = [with_p(**{f"p_{name}": p}) for p in (0.02, 0.01, 0.04)]
    adjust(rows, "these", SETTINGS)
    assert [row[f"p_{name}_holm"] for row in rows] == pytest.approx([0.04, 0.03, 0.04])
    assert [(row[own], row[other]) for row in rows] == [(True, False)] * 3
    assert [(row["family"], row["n_family"]) for row in rows] == [("these", 3)] * 3
    # Holm stops at the first p that is not rejected.
    rows = [with_p(**{f"p_{name}": p}) for p in (0.02, 0.03, 0.04)]
    adjust(rows, "these", SETTINGS)
    assert [row[f"p_{name}_holm"] for row in rows] == pytest.approx([0.06, 0.06, 0.06])
    assert not any(row["is_beyond_margin"] or row["is_within_margin"] for row in rows)


def test_level_follows_the_confidence() -> None:
    for confidence, found in ((0.9, True), (0.95, True), (0.99, False)):
        rows = [with_p(p_minimum_effect=0.05)]
        adjust(rows, "one", Statistics(confidence=confidence))
        assert rows[0]["is_beyond_margin"] is found


def test_contrast_of_clearly_different_arms_has_all_its_numbers() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.normal(0.9, 0.02, 30), rng.normal(0.6, 0.02, 35)
    found = contrast(arm_of(*high), arm_of(*low))
    welch = scipy.stats.ttest_ind(low, high, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert found["difference"] == pytest.approx(low.mean() - high.mean(), abs=1e-12)
    assert found["standard_error"] == pytest.approx(
        np.sqrt(scipy.stats.sem(high) ** 2 + scipy.stats.sem(low) ** 2), rel=0.1
    )
    assert found["df"] == pytest.approx(welch.df, rel=0.1)
    width = interval.high - interval.low
    ours = (found["difference_low"], found["difference_high"])
    assert ours == pytest.approx(tuple(interval), abs=0.1 * width)
    assert found["probability_of_superiority"] == 1.0
    # A tenth of trained's excess over chance.
    assert found["margin"] == pytest.approx(0.1 * (high.mean() - 0.5), rel=1e-12)
    seen = found["detectable_difference"] - found["margin"]
    assert seen == pytest.approx(2.85 * found["standard_error"], rel=0.02)
    assert found["speaks_of"] == "latents of one draw and seed"
    word, reason = verdict(found, METRIC["auroc"], 0.95)
    assert (word, reason[:20]) == ("separates", "this randomization: ")


def test_without_replication_there_is_no_p_value_and_the_reason_says_so() -> None:
    rng = np.random.default_rng(1)
    found = contrast(arm_of(*rng.normal(0.9, 0.02, 30)), arm_of(*rng.normal(0.6, 0.02, 35)))
    assert [found[name] for name in P_VALUES] == [None] * len(P_VALUES)
    assert found["reason"].startswith("one draw and one seed: no p-values")
    assert (found["is_replicated"], found["scope"]) == (False, "this randomization")
    assert (found["is_beyond_margin"], found["is_within_margin"]) == (True, False)
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    # Further draws, or further seeds of the only draw, give p-values.
    for second in ({"draw": 1, "seed": 0}, {"draw": 0, "seed": 1}):
        cells = (ArmCell(0, 0, (rng.normal(0.6, 0.02, 35),)),)
        cells += (ArmCell(**second, columns=(rng.normal(0.61, 0.02, 35),)),)
        found = contrast(arm_of(*rng.normal(0.9, 0.02, 30)), Arm(cells))
        assert found["is_replicated"]
        assert found["p_value"] > 1e-6
        assert found["p_minimum_effect_holm"] == found["p_minimum_effect"] > found["p_value"]


@pytest.mark.parametrize(
    ("variant", "cells", "scope"),
    [
        ("rerandomized", [(0, 0)], "this randomization"),
        ("rerandomized", [(0, 0), (0, 1)], "this randomization"),
        ("rerandomized", [(0, 0), (1, 0)], "randomizations of this kind"),
        ("retrained", [(0, 0)], "this retraining"),
        ("retrained", [(0, 0), (0, 1)], "this retraining"),
        ("retrained", [(0, 0), (1, 0)], "retrainings from other seeds"),
        ("step0", [(0, 0)], "these SAEs"),
        ("step0", [(0, 0), (0, 1)], "this model"),
    ],
)
def test_the_scope_names_what_was_made_more_than_once(
    variant: str, cells: list[tuple[int, int]], scope: str
) -> None:
    arm = Arm(tuple(ArmCell(draw, seed, (np.array([0.1, 0.3]),)) for draw, seed in cells))
    assert scope_of(variant, arm) == scope


def test_a_study_without_replication_says_so_first() -> None:
    one, model = "this randomization", "this model"
    alone = [{"scope": one, "is_replicated": False}, {"scope": model, "is_replicated": False}]
    assert (replication_note(alone) or "").startswith("One draw and one seed: each verdict is")
    seeds = [{"scope": one, "is_replicated": True}, {"scope": model, "is_replicated": True}]
    assert (replication_note(seeds) or "").startswith("One draw: each verdict is about this")
    draws = [{"scope": "randomizations of this kind", "is_replicated": True}]
    assert replication_note(draws) is None
    again = [{"scope": "this retraining", "is_replicated": False}]
    with_control = replication_note([*alone, *again]) or ""
    assert (
        "each verdict is about this randomization or this retraining and its SAEs" in with_control
    )
    alone_again = replication_note(again) or ""
    assert "about this retraining and its SAEs, not about other seeds" in alone_again
    # A single retraining does not matter next to several draws.
    assert replication_note([*draws, *again]) is None
    assert replication_note([]) is None


def test_separating_takes_a_difference_beyond_the_margin() -> None:
    """The interval excludes 0 in all three cases; its position relative to the margin decides."""
    rng = np.random.default_rng(21)
    noise = rng.normal(0, 0.02, 50)
    trained = arm_of(*(0.9 + noise - noise.mean()))
    words = []
    for shift in (0.02, 0.042, 0.1):
        variant = arm_of(*(0.9 - shift + noise - noise.mean()))
        found = contrast(trained, variant)
        assert found["margin"] == pytest.approx(0.04)
        assert found["difference_high"] < 0
        words.append(verdict(found, METRIC["auroc"], 0.95)[0])
        beyond = found["difference_high"] < -found["margin"]
        assert beyond == (words[-1] == "separates")
    assert words == ["equivalent", "inconclusive", "separates"]


def test_margins_are_shares_of_trained_minus_the_floor_or_absolute_and_say_so() -> None:
    settings = Statistics(
        margin_shares=MarginShares(auroc=0.2), equivalence_margins=EquivalenceMargins(cosine=0.03)
    )
    assert settings.margin("auroc", 0.8) == pytest.approx(0.2 * 0.3)
    assert settings.margin("peak_token_share", 0.4) == pytest.approx(0.1 * 0.6)
    assert settings.margin("cosine", 0.8) == 0.03
    assert settings.margin_rule("auroc") == "0.2 of |trained - 0.5|"
    assert settings.margin_rule("cosine") == "0.03, absolute by statistics.equivalence_margins"


def test_a_test_refuses_a_margin_that_nothing_short_of_the_floor_exceeds() -> None:
    """Autocorrelation is near 0.01, so an absolute margin of 0.05 contains all of it."""
    rng = np.random.default_rng(22)
    arms = [arm_of(*rng.normal(mean, 0.002, 40)) for mean in (0.01, 0.005)]
    wide = Statistics(equivalence_margins=EquivalenceMargins(autocorrelation=0.05))
    found = contrast(*arms, "autocorrelation", wide)
    assert (found["is_beyond_margin"], found["is_within_margin"]) == (None, None)
    assert found["difference_low"] is not None
    word, reason = verdict(found, METRIC["autocorrelation"], 0.95)
    assert word == "inconclusive"
    assert "the margin 0.05 cannot be exceeded between trained (0.0" in reason
    narrow = Statistics(equivalence_margins=EquivalenceMargins(autocorrelation=0.001))
    for settings in (narrow, SETTINGS):
        found = contrast(*arms, "autocorrelation", settings)
        assert verdict(found, METRIC["autocorrelation"], 0.95)[0] == "separates"


def test_a_share_of_a_difference_from_the_floor_that_may_be_noise_is_no_margin() -> None:
    rng = np.random.default_rng(23)
    found = contrast(arm_of(*rng.normal(0.5, 0.1, 40)), arm_of(*rng.normal(0.7, 0.1, 40)))
    assert found["is_beyond_margin"] is None
    assert "cannot be told from the floor 0.5" in found["reason"]
    assert verdict(found, METRIC["auroc"], 0.95)[0] == "inconclusive"


@pytest.mark.parametrize("name", METRIC)
def test_every_metric_can_exceed_its_margin(name: str) -> None:
    metric = METRIC[name]
    assert 0 < metric.margin_share < 1
    low, high = (bound.strip("[]()") for bound in metric.values.split(", "))
    ends = [float(end.replace("∞", "inf")) for end in (low.replace("-∞", "-inf"), high)]
    assert ends[0] <= metric.floor <= ends[1]
    # The floor is further from any value than the margin.
    for trained in (0.3, 0.8):
        assert SETTINGS.margin(name, trained) < abs(trained - metric.floor)


@pytest.mark.parametrize("share", [0.0, 1.0, 5.0])
def test_a_metric_whose_margin_is_no_share_is_refused_as_its_file_is_read(share: float) -> None:
    needed = {"title": "t", "columns": ("auroc",), "section": "tokens", "floor": 0.0}
    texts = {"definition": "d", "reading": "r", "name": "wide", "margin_share": share}
    with pytest.raises(TypeError, match=r"'wide': margin_share .* is not between 0 and 1"):
        type("Wide", (Metric,), needed | texts)


def test_equal_arms_are_equivalent_within_the_margin() -> None:
    rng = np.random.default_rng(2)
    settings = SETTINGS.model_copy(update={"equivalence_margins": EquivalenceMargins(auroc=0.03)})
    arms = [arm_of(*rng.normal(0.7, 0.02, 40)) for _ in range(2)]
    found = contrast(arms[0], arms[1], settings=settings)
    assert found["margin"] == 0.03
    assert verdict(found, METRIC["auroc"], 0.95)[0] == "equivalent"


def test_draws_are_compared_whole() -> None:
    """Latents within draws vary less than draws do, so pooling them would find a difference."""
    rng = np.random.default_rng(3)
    means = [0.5, 0.7, 0.9]
    cells = [ArmCell(d, 0, (rng.normal(mean, 0.02, 50),)) for d, mean in enumerate(means)]
    trained = rng.normal(0.75, 0.02, 50)
    found = contrast(arm_of(*trained), Arm(tuple(cells)))
    own = np.array([cell.columns[0].mean() for cell in cells])
    error = np.sqrt(scipy.stats.sem(own) ** 2 + scipy.stats.sem(trained) ** 2)
    assert found["standard_error"] == pytest.approx(error, rel=1e-3)
    assert found["df"] == pytest.approx(2, abs=0.01)
    assert found["p_value"] == pytest.approx(
        2 * scipy.stats.t.sf(abs(found["difference"]) / error, found["df"]), rel=1e-2
    )
    pooled = np.concatenate([cell.columns[0] for cell in cells])
    assert scipy.stats.ttest_ind(trained, pooled, equal_var=False).pvalue < 0.001
    assert found["p_permutation"] is None
    assert "1 and 3 draws can be divided in only 4 ways" in found["reason"]
    assert found["speaks_of"] == "draws of rerandomized, latents of one draw and seed of trained"
    alone = estimated(Arm(tuple(cells)))
    expected = scipy.stats.t.interval(0.95, 2, own.mean(), scipy.stats.sem(own))
    assert alone.interval == pytest.approx(expected, rel=1e-9)


def test_documents_and_draws_add_up_without_counting_twice() -> None:
    rng = np.random.default_rng(4)
    n_draws, n = 5, 40
    below = np.ones(n)
    # If only draws x documents interact, draws already include all of the variance.
    cells = [(list(x), list(below)) for x in rng.normal(0, 1.0, size=(n_draws, n))]
    found = estimated(ratio(cells), "cosine", Statistics(n_resamples=20_000))
    means = np.array([np.mean(above) for above, _ in cells])
    data = np.array([above for above, _ in cells])
    own = data.mean(axis=0)
    of_documents = own.var(ddof=1) / n
    rest = (data - own).var(axis=1, ddof=1).sum() / (n * n_draws * (n_draws - 1))
    total = means.var(ddof=1) / n_draws + max(0.0, of_documents - rest)
    low, high = found.interval or (0, 0)
    width = Spread(float(np.sqrt(total)), n_draws - 1).interval(0, 0.95)
    assert high - low == pytest.approx(width[1] - width[0], rel=0.15)
    assert of_documents == pytest.approx(1 / (n * n_draws), rel=0.6)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (ArmCell(0, 0, (np.empty(0),)), "rerandomized: no latents"),
        (ArmCell(0, 0, (np.empty(0),), n_null=7), "rerandomized: auroc is null for all 7 latents"),
        (
            ArmCell(0, 0, (np.array([0.5, NAN]),)),
            "rerandomized: NaN or infinite auroc in draw 0, seed 0",
        ),
        (
            ArmCell(0, 0, (np.array([0.5, np.inf]),)),
            "rerandomized: NaN or infinite auroc in draw 0, seed 0",
        ),
        (ArmCell(0, 0, (np.array([0.5, 1]),), reason="no floor"), "rerandomized: no floor"),
    ],
)
def test_an_arm_without_a_value_gives_nulls_with_a_reason(cell: ArmCell, reason: str) -> None:
    found = contrast(arm_of(0.8, 0.9, 0.7), Arm((cell,)))
    assert found["reason"] == reason
    assert found["real_value"] == pytest.approx(0.8)
    nulls = (*TESTED, "value", "value_low", "matched_value", "n_matched")
    assert [found[name] for name in nulls] == [None] * len(nulls)
    assert found["matched_reason"] == "an arm has no value"
    summary = summary_row(estimated(Arm((cell,))), METRIC["auroc"])
    assert (summary["value"], summary["reason"]) == (None, reason.removeprefix("rerandomized: "))
    word, why = verdict(found, METRIC["auroc"], 0.95)
    assert word == "inconclusive"
    assert reason in why


def test_one_unit_has_a_value_but_no_interval() -> None:
    found = contrast(arm_of(0.8, 0.9), arm_of(0.5))
    assert found["difference"] == pytest.approx(-0.35)
    assert (found["value"], found["value_low"], found["difference_low"]) == (0.5, None, None)
    assert (found["p_value"], found["p_permutation"]) == (None, None)
    assert found["reason"] == "rerandomized: one latent only: no interval"


def test_constant_arms_are_not_tested() -> None:
    found = contrast(arm_of(0.9, 0.9, 0.9), arm_of(0.5, 0.5, 0.5))
    assert found["difference"] == pytest.approx(-0.4)
    untested = ("difference_low", "p_value", "p_equivalence", "is_within_margin")
    assert [found[name] for name in untested] == [None] * 4
    assert "all 3 latents are equal" in found["reason"]
    assert "same in all resamples" in found["reason"]
    assert verdict(found, METRIC["auroc"], 0.95)[0] == "inconclusive"
    draws = Arm(tuple(ArmCell(d, 0, (np.array([0.1, 0.3]),)) for d in range(3)))
    assert estimated(draws).reason == "all 3 draws are equal: no interval"


def test_a_constant_arm_can_still_be_compared_with_one_that_varies() -> None:
    found = contrast(arm_of(0.9, 0.9, 0.9), arm_of(0.5, 0.4, 0.6))
    assert found["df"] == pytest.approx(2)
    assert found["difference_high"] < 0
    assert found["real_low"] is None


def test_a_zero_denominator_gives_nulls_not_a_number() -> None:
    found = estimated(ratio([([1.0] * 3, [0.0] * 3)]), "explained_variance")
    assert (found.value, found.interval) == (None, None)
    assert found.reason == "squared_deviation sums to 0"
    # With one of two documents at 0, a quarter of the resamples is undefined.
    found = estimated(ratio([([1.0, 1.0], [0.0, 4.0])], complement=True), "explained_variance")
    assert (found.value, found.interval) == (0.5, None)
    assert found.reason == "squared_deviation sums to 0 in some resamples: no interval"


def test_documents_of_unequal_number_are_not_paired() -> None:
    one, other = ([1.0, 2.0, 4.0], [5.0] * 3), ([1.0, 3.0], [5.0] * 2)
    found = contrast(ratio([one]), ratio([other]), "cosine")
    assert found["difference"] == pytest.approx(4 / 10 - 7 / 15, abs=1e-12)
    assert found["p_value"] is None
    assert "documents differ in number" in found["reason"]
    found = contrast(ratio([one]), ratio([one, other]), "cosine")
    assert (found["value_low"], found["p_value"]) == (None, None)
    assert "cells differ in their documents" in found["reason"]


def test_a_column_that_does_not_vary_has_no_correlation() -> None:
    arms = [
        Arm((ArmCell(0, 0, (np.array(x), np.array([0.5, 0.6, 0.9, 0.4]))),), "rank_correlation")
        for x in ([1.0, 2.0, 3.0, 4.0], [1.0] * 4)
    ]
    found = contrast(arms[0], arms[1], "entropy_auroc_correlation")
    assert (found["value"], found["p_value"]) == (None, None)
    assert found["reason"] is not None
    assert "rerandomized: token_entropy_bits or auroc does not vary" in found["reason"]
    assert found["matched_reason"] == "not a mean over latents"


def test_cells_that_are_left_out_are_named() -> None:
    cells = (ArmCell(0, 0, (np.array([0.1, 0.2, 0.4]),)), ArmCell(0, 1, (np.empty(0),)))
    found = estimated(Arm(cells))
    assert found.value == pytest.approx(0.7 / 3)
    assert found.interval is not None
    assert found.reason == "no latents in draw 0, seed 1, left out"


def test_complement_turns_superiority_round() -> None:
    # The trained arm's squared errors are smaller, so its explained variance is larger.
    below = [10.0] * 4
    trained = ratio([([1.0, 2, 3, 2], below)], complement=True)
    variant = ratio([([6.0, 5, 7, 6], below)], complement=True)
    found = contrast(trained, variant, "explained_variance")
    assert found["probability_of_superiority"] == 1.0
    assert (found["real_value"], found["value"]) == (pytest.approx(0.8), pytest.approx(0.4))


def test_matched_numbers_accompany_the_plain_ones() -> None:
    rng = np.random.default_rng(5)

    def arm(strata: list[int]) -> Arm:
        numbers = 0.8 - 0.2 * (np.array(strata) == -2) + rng.normal(0, 0.01, len(strata))
        return Arm((ArmCell(0, 0, (numbers,), strata=np.array(strata)),))

    found = contrast(arm([-4] * 40 + [-2] * 10), arm([-4] * 10 + [-2] * 40))
    assert found["difference"] == pytest.approx(-0.12, abs=0.01)
    assert found["n_matched"] == 20
    assert found["matched_difference"] == pytest.approx(0, abs=0.01)
    assert found["matched_difference_low"] < 0 < found["matched_difference_high"]
    assert found["difference_high"] < 0
    apart = contrast(arm([-4] * 40), arm([-2] * 40))
    assert (apart["n_matched"], apart["matched_value"]) == (None, None)
    assert "no half-decade" in apart["matched_reason"]


def test_holm_leaves_out_what_is_not_tested_or_not_comparable() -> None:
    rows = [with_p(p_minimum_effect=p) for p in (0.01, 0.5, 0.04, 0.001)]
    rows[1] |= {"p_minimum_effect": None, "p_equivalence": None}
    rows[3]["not_comparable"] = "another L0"
    adjust(rows, "these", SETTINGS)
    found = [row.get("p_minimum_effect_holm") for row in rows]
    assert found == [pytest.approx(0.02), None, pytest.approx(0.04), None]
    assert {row["n_family"] for row in rows} == {2}
    seen = 0.05 + Spread(0.1, 20.0).detectable(0.05 / 2)
    assert [r.get("detectable_difference") for r in rows] == [seen, None, seen, None]


def test_power_is_oriented_by_what_the_metric_should_show() -> None:
    def one(metric: str, difference: float, superiority: float, **more: Any) -> dict[str, Any]:
        keys = {"subject": "s", "sae": "a", "explainer": None, "scorer": None, "metric": metric}
        error = {"variant": "step0", "difference": difference, "standard_error": 0.1}
        error["is_replicated"] = True
        return {**keys, **error, "probability_of_superiority": superiority, **more}

    rows = [
        one("cosine", -0.2, 0.9),
        one("cosine", 0.1, 0.3),
        one("cosine", -0.5, 0.7),
        one("peak_token_share", 0.3, 0.2),
        one("l1_ratio", 0.3, 0.2),
        one("l1_ratio", -0.4, 0.9, standard_error=None),
        one("cosine", None, None, sae="b", standard_error=None),  # type: ignore[arg-type]
        one("cosine", -0.4, 0.9, sae="c", is_replicated=False),
        one("cosine", -0.4, 0.9, sae="c", is_replicated=False),
    ]
    words = [*("separates", "reversed", "inconclusive"), *("separates",) * 3, "inconclusive"]
    words += ["none", "separates"]
    found = discriminating_power(rows, words)
    keys = [(row["sae"], row["metric"]) for row in found]
    of_a = [("a", "cosine"), ("a", "peak_token_share"), ("a", "l1_ratio")]
    assert keys == [*of_a, ("b", "cosine"), ("c", "cosine")]
    cosine, peak, l1, empty, unreplicated = found
    counts = {f"n_{word}": cosine[f"n_{word}"] for word in VERDICT_WORDS}
    assert list(counts.values()) == [1, 1, 0, 1, 0]
    assert cosine["separates_share"] == pytest.approx(1 / 3)
    assert cosine["median_superiority"] == pytest.approx(0.7)
    assert cosine["median_standardized_difference"] == pytest.approx(2.0)
    assert (peak["median_superiority"], peak["median_standardized_difference"]) == (
        pytest.approx(0.8),
        pytest.approx(3.0),
    )
    assert (l1["median_superiority"], l1["median_standardized_difference"]) == (
        pytest.approx(0.85),
        pytest.approx(3.0),
    )
    assert (empty["median_superiority"], empty["median_standardized_difference"]) == (None, None)
    # Shares are among contrasts with a verdict; one randomization has no standardized difference.
    assert (unreplicated["n_none"], unreplicated["separates_share"]) == (1, 1.0)
    assert unreplicated["median_standardized_difference"] is None
    assert unreplicated["median_superiority"] == pytest.approx(0.9)


def test_power_counts_no_null_on_which_a_metric_has_no_value() -> None:
    def one(metric: str, variant: str, difference: float | None) -> dict[str, Any]:
        keys = {"subject": "s", "sae": "a", "explainer": None, "scorer": None, "metric": metric}
        numbers = {"difference": difference, "standard_error": None, "is_replicated": False}
        return {**keys, **numbers, "variant": variant, "probability_of_superiority": None}

    rows = [
        one(metric, variant, None if variant == "gaussian" else -0.2)
        for metric in ("next_token_auroc", "cosine")
        for variant in ("step0", "gaussian")
    ]
    words = ["separates", "none", "separates", "inconclusive"]
    of_model, of_samples = discriminating_power(rows, words)
    assert (of_model["n_contrasts"], of_model["separates_share"]) == (1, 1.0)
    assert (of_samples["n_contrasts"], of_samples["separates_share"]) == (2, 0.5)


@pytest.mark.parametrize("difference", [-0.2, 0.2])
@pytest.mark.parametrize("name", ["auroc", "peak_token_share", "next_token_auroc"])
def test_a_positive_control_is_told_apart_whichever_side_it_is_on(
    name: str, difference: float
) -> None:
    changes = {"null": "retrained", "difference": difference}
    word, reason = verdict(row(**changes), METRIC[name], 0.95)
    assert word == "separates"
    assert "no side expected" in reason
    within = {"is_beyond_margin": False, "is_within_margin": True}
    word, _ = verdict(row(**changes, **within), METRIC[name], 0.95)
    assert word == "equivalent"


@pytest.mark.parametrize("is_replicated", [True, False])
def test_positive_controls_are_counted_apart_from_nulls(is_replicated: bool) -> None:
    def one(variant: str, difference: float | None, metric: str = "cosine") -> dict[str, Any]:
        keys = {"subject": "s", "sae": "a", "explainer": None, "scorer": None, "metric": metric}
        error = None if difference is None else 0.1
        return {**keys, "variant": variant, "difference": difference, "standard_error": error} | {
            "probability_of_superiority": 0.9 if difference else None,
            "is_replicated": is_replicated,
            # One draw and one seed is tested, but has no p-value.
            "is_within_margin": None if difference is None else False,
            "p_equivalence": 0.5 if is_replicated and difference is not None else None,
        }

    contrasts = [
        (one("step0", -0.3), "separates"),
        (one("rerandomized", -0.1), "inconclusive"),
        # As far off as a null can be, without moving the medians of the nulls.
        (one("retrained", 9.0), "separates"),
        (one("retrained", 0.01), "equivalent"),
        (one("retrained", 0.02), "equivalent"),
        (one("retrained", 0.2), "inconclusive"),
        # Never computed, so no evidence that a metric tells no trainings apart.
        (one("retrained", None), "inconclusive"),
        # Nor is an SAE with another L0.
        (one("retrained", 0.02) | {"is_within_margin": None}, "none"),
        (one("step0", -0.3, "l1_ratio"), "separates"),
        (one("retrained", None, "auroc"), "inconclusive"),
    ]
    rows = [row for row, _ in contrasts]
    cosine, l1, auroc = discriminating_power(rows, [word for _, word in contrasts])
    assert (cosine["n_contrasts"], cosine["n_separates"], cosine["n_inconclusive"]) == (2, 1, 1)
    assert cosine["separates_share"] == 0.5
    expected = pytest.approx(2.0) if is_replicated else None
    assert cosine["median_standardized_difference"] == expected
    assert [cosine[f"n_controls{of}"] for of in ("", "_told_apart", "_equivalent")] == [4, 1, 2]
    assert cosine["controls_not_told_apart_share"] == 0.75
    assert (l1["n_controls"], l1["controls_not_told_apart_share"]) == (0, None)
    assert (auroc["n_contrasts"], auroc["separates_share"]) == (0, None)
    assert (auroc["n_controls"], auroc["controls_not_told_apart_share"]) == (0, None)
