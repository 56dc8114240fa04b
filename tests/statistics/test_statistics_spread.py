from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nullsae.statistics.spread import (
    Component,
    Spread,
    mean_component,
    mean_of_units,
    unit_component,
)

SKEWNESS = st.floats(-1.5, 1.5)
DF = st.floats(1, 500)
VALUE = st.floats(-4, 4)


def test_without_skewness_it_is_students_t() -> None:
    data = np.random.default_rng(1).normal(0.3, 1.0, size=12)
    error = scipy.stats.sem(data)
    spread = Spread(float(error), 11)
    expected = scipy.stats.t.interval(0.95, 11, data.mean(), error)
    assert spread.interval(data.mean(), 0.95) == pytest.approx(expected, rel=1e-12)
    assert spread.p_two_sided(data.mean()) == pytest.approx(
        scipy.stats.ttest_1samp(data, 0.0).pvalue, rel=1e-12
    )
    below = scipy.stats.ttest_1samp(data, 0.4, alternative="less").pvalue
    above = scipy.stats.ttest_1samp(data, -0.4, alternative="greater").pvalue
    assert spread.p_equivalence(data.mean(), 0.4) == pytest.approx(max(below, above), rel=1e-12)


def test_two_arms_of_one_cell_give_welchs_test() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(0.2, 1.0, size=14), rng.normal(0.0, 3.0, size=31)
    parts = [Component(x.var(ddof=1) / len(x), len(x) - 1) for x in (one, other)]
    spread = Spread.of(parts)
    welch = scipy.stats.ttest_ind(other, one, equal_var=False)
    difference = other.mean() - one.mean()
    assert spread.df == pytest.approx(welch.df, rel=1e-12)
    assert spread.p_two_sided(difference) == pytest.approx(welch.pvalue, rel=1e-12)
    interval = welch.confidence_interval(0.9)
    assert spread.interval(difference, 0.9) == pytest.approx(tuple(interval), rel=1e-12)


def test_draws_against_latents_take_cochrans_point() -> None:
    draws, latents = Component(0.09, 2, is_whole=True), Component(0.02, 49)
    spread = Spread.of([draws, latents])
    t = scipy.stats.t
    point = (0.09 * t.ppf(0.975, 2) + 0.02 * t.ppf(0.975, 49)) / 0.11
    half = point * np.sqrt(0.11)
    assert spread.interval(1.0, 0.95) == pytest.approx((1 - half, 1 + half), rel=1e-9)
    assert 2 < spread.df < (0.11**2) / (0.09**2 / 2 + 0.02**2 / 49)
    # With one of the two, the other has no effect.
    assert Spread.of([draws, Component(0.0, 49)]).df == 2


@given(SKEWNESS, DF, VALUE, st.floats(0.5, 0.999))
def test_the_interval_excludes_what_the_test_rejects(
    skewness: float, df: float, value: float, confidence: float
) -> None:
    spread = Spread(0.7, df, skewness)
    low, high = spread.interval(value, confidence)
    assert low < high
    for bound in (low, high):
        assert spread.p_two_sided(value, bound) == pytest.approx(1 - confidence, rel=1e-5)
    assert low < value < high or abs(skewness) > 1


@given(SKEWNESS, DF, VALUE)
def test_equivalence_is_an_interval_of_twice_the_level_within_the_margin(
    skewness: float, df: float, value: float
) -> None:
    spread = Spread(0.3, df, skewness)
    low, high = spread.interval(value, 0.9)
    margin = 1.1
    inside = -margin < low and high < margin
    p = spread.p_equivalence(value, margin)
    assert inside == (p < 0.05) or p == pytest.approx(0.05, rel=1e-6)


@given(SKEWNESS, DF, VALUE, st.floats(0.5, 0.999))
def test_the_minimum_effect_test_rejects_where_the_interval_lies_beyond_the_margin(
    skewness: float, df: float, value: float, confidence: float
) -> None:
    spread, margin = Spread(0.3, df, skewness), 0.4
    low, high = spread.interval(value, confidence)
    beyond = low > margin or high < -margin
    p = spread.p_minimum_effect(value, margin)
    assert beyond == (p < 1 - confidence) or p == pytest.approx(1 - confidence, rel=1e-5)
    # No difference is beyond and within the margin at once at a level below 1/2.
    assert not (p < 0.5 and spread.p_equivalence(value, margin) < 0.25)


@pytest.mark.parametrize("mean", [-1.0, 0.1, 0.7])
def test_the_minimum_effect_test_is_scipys_against_the_nearer_margin(mean: float) -> None:
    data = np.random.default_rng(11).normal(mean, 1.0, 40)
    spread = Spread(float(scipy.stats.sem(data)), 39)
    above = scipy.stats.ttest_1samp(data, 0.2, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(data, -0.2, alternative="less").pvalue
    p = spread.p_minimum_effect(float(data.mean()), 0.2)
    assert p == pytest.approx(min(1.0, 2 * min(above, below)), rel=1e-9)
    # Without a margin it is the two-sided test.
    both = scipy.stats.ttest_1samp(data, 0.0).pvalue
    assert spread.p_minimum_effect(float(data.mean()), 0.0) == pytest.approx(both, rel=1e-9)


def test_the_correction_moves_the_interval_to_the_long_tail() -> None:
    plain, skewed = Spread(1.0, 30), Spread(1.0, 30, 0.4)
    assert skewed.interval(0, 0.95)[1] > plain.interval(0, 0.95)[1]
    assert skewed.interval(0, 0.95)[0] > plain.interval(0, 0.95)[0]
    mirrored = Spread(1.0, 30, -0.4).interval(0, 0.95)
    assert mirrored == pytest.approx([-x for x in skewed.interval(0, 0.95)[::-1]], rel=1e-12)


def test_halls_transform_evens_the_tails_for_the_mean_of_an_exponential() -> None:
    """Student's t misses 0.9% and 5.4% in the two tails here; with the transform, 1.9% and 3.3%."""
    rng = np.random.default_rng(3)
    n, trials = 50, 4000
    data = rng.exponential(size=(trials, n))
    error = data.std(axis=1, ddof=1) / np.sqrt(n)
    skewness = scipy.stats.skew(data, axis=1) / np.sqrt(n)
    missed, plain = np.zeros(2), np.zeros(2)
    for mean, s, skew in zip(data.mean(axis=1), error, skewness, strict=True):
        low, high = Spread(s, n - 1, skew).interval(mean, 0.95)
        missed += (low > 1, high < 1)
        low, high = Spread(s, n - 1).interval(mean, 0.95)
        plain += (low > 1, high < 1)
    assert plain / trials == pytest.approx([0.009, 0.054], abs=0.01)
    assert missed / trials == pytest.approx([0.025, 0.025], abs=0.012)


def test_small_p_values_are_not_cut_off() -> None:
    spread = Spread(0.01, 60)
    assert spread.p_two_sided(0.3) == pytest.approx(2 * scipy.stats.t.sf(30, 60), rel=1e-9)
    assert 0 < spread.p_two_sided(0.3) < 1e-30


@pytest.mark.parametrize("df", [2, 4, 49])
@pytest.mark.parametrize("level", [0.05, 0.05 / 24])
def test_detectable_differences_are_found_with_80_percent_power(df: int, level: float) -> None:
    size = Spread(2.0, df).detectable(level)
    critical = scipy.stats.t.ppf(1 - level / 2, df)
    power = scipy.stats.nct.sf(critical, df, size / 2.0)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_detectable_difference_of_large_samples_is_blooms() -> None:
    bloom = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)
    assert Spread(1.0, 1e6).detectable(0.05) == pytest.approx(bloom, rel=1e-4)


def test_components_of_units_make_up_for_what_resamples_lack() -> None:
    data = np.random.default_rng(4).gamma(2.0, size=15)
    drawn = np.random.default_rng(5).integers(0, 15, size=(200_000, 15))
    found = unit_component(data[drawn].mean(axis=1), 15)
    assert found.variance == pytest.approx(data.var(ddof=1) / 15, rel=0.01)
    assert (found.df, found.is_whole) == (14, False)
    third = np.mean((data - data.mean()) ** 3) / 15**2 * (15 / 14) ** 1.5
    assert found.third == pytest.approx(third, rel=0.1)
    # What draws already include is subtracted, and never more than exists.
    whole = float(data[drawn].mean(axis=1).var())
    less = unit_component(data[drawn].mean(axis=1), 15, whole / 2)
    assert less.variance == pytest.approx(found.variance / 2, rel=1e-9)
    assert unit_component(data[drawn].mean(axis=1), 15, 2 * whole).variance == 0


def test_units_in_a_mean_have_in_closed_form_what_resamples_tend_to() -> None:
    data = np.random.default_rng(5).gamma(2.0, size=40)
    rng = np.random.default_rng(6)
    resamples = data[rng.integers(40, size=(200_000, 40))].mean(axis=1)
    found, drawn = mean_of_units(data), unit_component(resamples, 40)
    assert found.variance == pytest.approx(scipy.stats.sem(data) ** 2, rel=1e-12)
    assert found.variance == pytest.approx(drawn.variance, rel=0.01)
    assert found.third == pytest.approx(drawn.third, rel=0.1)
    skewness = found.third / found.variance**1.5
    assert skewness == pytest.approx(scipy.stats.skew(data) / np.sqrt(40), rel=1e-12)
    assert (found.df, found.is_whole) == (39, False)


def test_component_of_draws_is_the_squared_standard_error() -> None:
    values = np.array([0.1, 0.4, 0.2])
    found = mean_component(values)
    assert found.variance == pytest.approx(scipy.stats.sem(values) ** 2, rel=1e-12)
    assert (found.df, found.third, found.is_whole) == (2, 0.0, True)


def test_scaling_and_summing_follow_the_moments() -> None:
    part = Component(0.5, 7, 0.2)
    assert part.scaled(-1) == Component(0.5, 7, -0.2)
    assert part.scaled(2) == Component(2.0, 7, pytest.approx(1.6))
    spread = Spread.of([part, part.scaled(-1)])
    assert (spread.standard_error, spread.skewness) == (pytest.approx(1.0), 0.0)
    assert Spread.of([Component(0.0, 3)]).standard_error == 0.0
