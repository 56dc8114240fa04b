from __future__ import annotations

from math import comb

import numpy as np
import pytest
import scipy.stats

from nullsae.statistics.bootstrap import Arm, ArmCell
from nullsae.statistics.permutation import Permuter

GENERATOR = np.random.default_rng


def seeds(cells: list[np.ndarray]) -> Arm:
    return Arm(tuple(ArmCell(0, s, (x,)) for s, x in enumerate(cells)))


def draws(means: np.ndarray) -> Arm:
    """Return draws of two latents each."""
    return Arm(tuple(ArmCell(d, 0, (m + np.array([-1.0, 1.0]),)) for d, m in enumerate(means)))


def size_of_difference(x: np.ndarray, y: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.abs(np.mean(y, axis=axis) - np.mean(x, axis=axis))


def test_few_draws_are_permuted_in_all_ways_as_by_scipy() -> None:
    rng = GENERATOR(1)
    one, other = rng.normal(0.4, 1, 6), rng.normal(0, 1, 7)
    p, reason = Permuter(0, comb(13, 6)).p_value(draws(one), draws(other))
    theirs = scipy.stats.permutation_test(
        (one, other), size_of_difference, vectorized=True, alternative="greater", n_resamples=np.inf
    )
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert reason is None


def test_many_draws_are_permuted_at_random_to_the_same_end() -> None:
    rng = GENERATOR(2)
    one, other = rng.normal(0.3, 1, 40), rng.normal(0, 1, 50)
    p, _ = Permuter(0, 20_000).p_value(draws(one), draws(other))
    theirs = scipy.stats.permutation_test(
        (one, other),
        size_of_difference,
        vectorized=True,
        alternative="greater",
        n_resamples=20_000,
        rng=GENERATOR(3),
    )
    assert p == pytest.approx(theirs.pvalue, abs=0.012)
    # Never 0, because the observed division counts.
    assert Permuter(0, 99).p_value(draws(one + 9), draws(other))[0] == pytest.approx(0.01)


def test_seeds_change_arms_whole() -> None:
    rng = GENERATOR(6)
    one = [rng.normal(0.5, 1, 5) for _ in range(3)]
    other = [rng.normal(0, 1, 8) for _ in range(3)]
    means = [np.array([x.mean() for x in cells]) for cells in (one, other)]
    theirs = scipy.stats.permutation_test(
        means, size_of_difference, vectorized=True, alternative="greater", n_resamples=np.inf
    )
    p, reason = Permuter(0, 10_000).p_value(seeds(one), seeds(other))
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert reason is None
    assert p is not None
    assert p >= 2 / comb(6, 3)


def test_too_few_draws_give_a_reason_instead() -> None:
    rng = GENERATOR(7)
    several = Arm(tuple(ArmCell(d, s, (rng.normal(size=9),)) for d in range(3) for s in range(2)))
    trained = seeds([rng.normal(size=9) for _ in range(2)])
    p, reason = Permuter(0, 1000).p_value(trained, several)
    assert p is None
    # Seeds of one draw are not exchangeable with those of another: draws count.
    assert reason == (
        "no permutation test: 1 and 3 draws can be divided in only 4 ways, fewer than 20"
    )


def test_one_cell_against_one_has_no_permutation_test() -> None:
    rng = GENERATOR(8)
    one, other = seeds([rng.normal(size=30)]), seeds([rng.normal(size=40)])
    assert Permuter(0, 1000).p_value(one, other) == (None, None)


def test_other_arms_before_do_not_matter() -> None:
    rng = GENERATOR(9)
    one, other, third = rng.normal(size=30), rng.normal(size=40), rng.normal(size=20)
    alone = Permuter(3, 500).p_value(draws(one), draws(other))
    permuter = Permuter(3, 500)
    permuter.p_value(draws(one), draws(third))
    assert permuter.p_value(draws(one), draws(other)) == alone
