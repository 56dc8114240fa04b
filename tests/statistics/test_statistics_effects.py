from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nullsae.statistics.effects import (
    alpha_of,
    holm,
    p_equivalence,
    p_two_sided,
    probability_of_superiority,
    smallest_p_holm,
)

SMALL = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12).map(np.array)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(SMALL, SMALL)
def test_superiority_is_mann_whitney_u_over_pairs_ties_included(
    trained: np.ndarray, variant: np.ndarray
) -> None:
    pairs = np.mean([(t > v) + (t == v) / 2 for t in trained for v in variant])
    ours = probability_of_superiority(trained, variant)
    assert ours == pytest.approx(pairs, abs=1e-12)
    back = probability_of_superiority(variant, trained)
    assert ours is not None
    assert back == pytest.approx(1 - ours, abs=1e-12)


def test_superiority_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    trained, variant = rng.normal(1, 1, 37).round(1), rng.normal(0, 1, 53).round(1)
    u = scipy.stats.mannwhitneyu(trained, variant).statistic
    assert probability_of_superiority(trained, variant) == pytest.approx(u / (37 * 53), abs=1e-12)


def test_superiority_of_an_arm_without_units_is_none() -> None:
    assert probability_of_superiority(np.empty(0), np.ones(3)) is None
    assert probability_of_superiority(np.ones(3), np.empty(0)) is None


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        (np.arange(1.0, 100.0), 2 * 1 / 100),  # none at or below 0
        (-np.arange(1.0, 100.0), 2 * 1 / 100),
        (np.r_[-np.ones(4), np.ones(95)], 2 * 5 / 100),
        (np.r_[np.zeros(4), np.ones(95)], 2 * 5 / 100),  # 0 speaks for no difference
        (np.zeros(99), 1.0),  # twice the share would be 2
    ],
)
def test_two_sided_p_counts_resamples_on_the_wrong_side(
    differences: np.ndarray, expected: float
) -> None:
    assert p_two_sided(differences) == pytest.approx(expected, abs=1e-15)


def test_p_values_of_a_normal_difference_match_the_normal_tests() -> None:
    differences = np.random.default_rng(2).normal(0.03, 0.02, size=200_000)
    normal = scipy.stats.norm(0.03, 0.02)
    assert p_two_sided(differences) == pytest.approx(2 * normal.cdf(0), rel=0.03)
    assert p_equivalence(differences, 0.06) == pytest.approx(normal.sf(0.06), rel=0.03)
    assert p_equivalence(-differences, 0.06) == pytest.approx(normal.sf(0.06), rel=0.03)
    # A difference beyond the margin is anything but equivalent.
    assert p_equivalence(differences, 0.02) > 0.5


@pytest.mark.parametrize("sign", [-1, 1])
def test_equivalence_takes_the_worse_of_its_two_sides(sign: int) -> None:
    differences = sign * np.r_[np.full(2, -0.2), np.zeros(90), np.full(7, 0.2)]
    assert p_equivalence(differences, 0.1) == pytest.approx(8 / 100)
    assert p_equivalence(differences, 0.2) == pytest.approx(8 / 100)  # the margin itself counts
    assert p_equivalence(differences, 0.3) == pytest.approx(1 / 100)


def test_holm_gives_the_adjusted_values_of_r() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(P_VALUES, st.floats(0.01, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float], alpha: float) -> None:
    rejected, remaining = set(), sorted(range(len(p)), key=lambda i: p[i])
    while remaining and p[remaining[0]] * len(remaining) <= alpha:
        rejected.add(remaining.pop(0))
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected


def test_smallest_adjusted_p_is_what_the_best_contrast_gets() -> None:
    best = p_two_sided(np.ones(999))
    assert holm([best] + [1.0] * 19)[0] == pytest.approx(smallest_p_holm(999, 20))


def test_level_is_the_decimal_one() -> None:
    assert [alpha_of(c) for c in (0.9, 0.95, 0.99)] == [0.1, 0.05, 0.01]
