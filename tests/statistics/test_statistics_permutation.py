from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
import scipy.stats

from nullsae.statistics.bootstrap import Arm, ArmCell
from nullsae.statistics.permutation import Permuter

GENERATOR = np.random.default_rng


def units(numbers: np.ndarray) -> Arm:
    return Arm((ArmCell(0, 0, (numbers,)),))


def paired(above: np.ndarray, below: np.ndarray) -> Arm:
    return Arm((ArmCell(0, 0, (above, below)),), "ratio", units_are_shared=True)


def size_of_difference(x: np.ndarray, y: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.abs(np.mean(y, axis=axis) - np.mean(x, axis=axis))


def test_few_latents_are_permuted_in_all_ways_as_by_scipy() -> None:
    rng = GENERATOR(1)
    one, other = rng.normal(0.4, 1, 6), rng.normal(0, 1, 7)
    p, reason = Permuter(0, comb(13, 6)).p_value(units(one), units(other))
    theirs = scipy.stats.permutation_test(
        (one, other), size_of_difference, vectorized=True, alternative="greater", n_resamples=np.inf
    )
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert reason is None


def test_many_latents_are_permuted_at_random_to_the_same_end() -> None:
    rng = GENERATOR(2)
    one, other = rng.normal(0.3, 1, 40), rng.normal(0, 1, 50)
    p, _ = Permuter(0, 20_000).p_value(units(one), units(other))
    theirs = scipy.stats.permutation_test(
        (one, other),
        size_of_difference,
        vectorized=True,
        alternative="greater",
        n_resamples=20_000,
        rng=GENERATOR(3),
    )
    assert p == pytest.approx(theirs.pvalue, abs=0.012)
    # Never 0: the division at hand counts.
    assert Permuter(0, 99).p_value(units(one + 9), units(other))[0] == pytest.approx(0.01)


def test_documents_swap_their_numbers_between_the_arms() -> None:
    rng = GENERATOR(4)
    below = rng.gamma(2.0, size=9)
    one, other = below * rng.uniform(0.2, 0.5, 9), below * rng.uniform(0.25, 0.6, 9)

    def value(above: np.ndarray, under: np.ndarray) -> float:
        return float(above.sum() / under.sum())

    observed = abs(value(other, below) - value(one, below))
    sizes = []
    for swap in product([False, True], repeat=9):
        first, second = np.where(swap, other, one), np.where(swap, one, other)
        sizes.append(abs(value(second, below) - value(first, below)))
    expected = np.mean(np.array(sizes) >= observed - 1e-12)
    p, _ = Permuter(0, 2**9).p_value(paired(one, below), paired(other, below))
    assert p == pytest.approx(expected, abs=1e-12)
    near, _ = Permuter(0, 2**9 - 1).p_value(paired(one, below), paired(other, below))
    assert near == pytest.approx(expected, abs=0.09)
    # As scipy's paired test, for plain means of pairs.
    ones = np.ones(9)
    theirs = scipy.stats.permutation_test(
        (one, other),
        size_of_difference,
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        n_resamples=np.inf,
    )
    p, _ = Permuter(0, 2**9).p_value(paired(one, ones), paired(other, ones))
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_scale_of_an_arms_activations_does_not_matter() -> None:
    rng = GENERATOR(5)
    below = rng.gamma(2.0, size=12)
    one, other = below * rng.uniform(0.2, 0.5, 12), below * rng.uniform(0.25, 0.6, 12)
    permuter = Permuter(0, 5000)
    p, _ = permuter.p_value(paired(one, below), paired(other, below))
    scaled, _ = permuter.p_value(paired(one, below), paired(1e4 * other, 1e4 * below))
    assert scaled == p


def test_seeds_change_arms_whole() -> None:
    rng = GENERATOR(6)
    one = [rng.normal(0.5, 1, 5) for _ in range(3)]
    other = [rng.normal(0, 1, 8) for _ in range(3)]
    arms = [Arm(tuple(ArmCell(0, s, (x,)) for s, x in enumerate(cells))) for cells in (one, other)]
    means = [np.array([x.mean() for x in cells]) for cells in (one, other)]
    theirs = scipy.stats.permutation_test(
        means, size_of_difference, vectorized=True, alternative="greater", n_resamples=np.inf
    )
    p, reason = Permuter(0, 10_000).p_value(*arms)
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert reason is None
    assert p is not None
    assert p >= 2 / comb(6, 3)


def test_too_few_draws_give_a_reason_instead() -> None:
    rng = GENERATOR(7)
    draws = Arm(tuple(ArmCell(d, s, (rng.normal(size=9),)) for d in range(3) for s in range(2)))
    trained = Arm(tuple(ArmCell(0, s, (rng.normal(size=9),)) for s in range(2)))
    p, reason = Permuter(0, 1000).p_value(trained, draws)
    assert p is None
    # Seeds of one draw are no exchangeable with those of another: draws count.
    assert reason == (
        "no permutation test: 1 against 3 draws can be divided in 4 ways only, not 20"
    )


def test_rank_correlations_are_permuted_by_latent() -> None:
    rng = GENERATOR(8)
    data = rng.normal(size=(2, 2, 6))
    arms = [Arm((ArmCell(0, 0, (x, y)),), "rank_correlation") for x, y in data]

    def statistic(i: np.ndarray, j: np.ndarray) -> float:
        pooled = np.concatenate(list(data), axis=1)
        return abs(
            scipy.stats.spearmanr(*pooled[:, i.astype(int)]).statistic
            - scipy.stats.spearmanr(*pooled[:, j.astype(int)]).statistic
        )

    theirs = scipy.stats.permutation_test(
        (np.arange(6.0), np.arange(6.0, 12.0)),
        statistic,
        vectorized=False,
        alternative="greater",
        n_resamples=np.inf,
    )
    p, _ = Permuter(0, comb(12, 6)).p_value(*arms)
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_an_undefined_permutation_is_no_number() -> None:
    # A document without a denominator, alone in one arm in some divisions.
    one = Arm((ArmCell(0, 0, (np.array([1.0, 1.0]), np.array([1.0, 2.0]))),), "rank_correlation")
    other = Arm((ArmCell(0, 0, (np.array([2.0, 3.0]), np.array([1.0, 2.0]))),), "rank_correlation")
    p, reason = Permuter(0, 1000).p_value(one, other)
    assert p is None
    assert reason is not None
    assert "undefined in some permutations" in reason


def test_other_arms_before_do_not_matter() -> None:
    rng = GENERATOR(9)
    one, other, third = rng.normal(size=30), rng.normal(size=40), rng.normal(size=20)
    alone = Permuter(3, 500).p_value(units(one), units(other))
    permuter = Permuter(3, 500)
    permuter.p_value(units(one), units(third))
    assert permuter.p_value(units(one), units(other)) == alone
