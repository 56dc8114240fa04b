from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nullsae.statistics.effects import alpha_of, holm, probability_of_superiority

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


def test_level_is_the_decimal_one() -> None:
    assert [alpha_of(c) for c in (0.9, 0.95, 0.99)] == [0.1, 0.05, 0.01]
