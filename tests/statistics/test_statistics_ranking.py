from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nullsae.config.metrics import Direction
from nullsae.statistics.ranking import (
    LEVEL,
    Latents,
    fewest_nulls,
    n_nulls,
    p_values,
    q_values,
    ranking,
)

GENERATOR = np.random.default_rng
DIRECTIONS: tuple[Direction, ...] = (1, -1, 0)
# Benjamini & Hochberg 1995, J. R. Statist. Soc. B 57, 289: the 15 tests of section 3.2, of which
# their procedure rejects the first four at 5%.
PUBLISHED = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459),
    *(0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
]


def latents(value: np.ndarray | list[float], bins: np.ndarray | list[int]) -> Latents:
    n = len(value)
    return Latents(np.arange(n), np.array(value, dtype=float), np.array(bins, dtype=np.int64))


def counted(own: Latents, null: Latents, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of null latents and p, comparing each pair separately."""
    alike = own.bin[:, None] == null.bin
    n = alike.sum(axis=1)
    above = (alike & (null.value >= own.value[:, None])).sum(axis=1)
    below = (alike & (null.value <= own.value[:, None])).sum(axis=1)
    tails = {1: above, -1: below, 0: np.minimum(above, below)}[direction]
    p = (1 + tails) / (1 + n) * (1 if direction else 2)
    needed = 19 if direction else 39
    return n, np.where(n >= needed, np.minimum(p, 1.0), np.nan)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_p_counts_the_null_latents_of_the_same_bin(direction: Direction) -> None:
    rng = GENERATOR(1)
    # Rounded, so that many values are equal; some bins are small, empty or one-sided.
    own = latents(rng.normal(size=300).round(1), rng.integers(-7, -1, 300))
    shares = [0.3, 0.05, 0.3, 0.3, 0.05]
    null = latents(rng.normal(size=200).round(1), rng.choice([-6, -5, -3, -2, 0], 200, p=shares))
    n, p = counted(own, null, direction)
    assert n.min() == 0
    assert 0 < np.isfinite(p).sum() < (n > 0).sum()
    np.testing.assert_array_equal(n_nulls(own, null), n)
    np.testing.assert_allclose(p_values(own, null, direction), p, rtol=1e-14)


def test_p_of_a_hand_made_bin() -> None:
    null = latents(np.arange(1.0, 20.0), [-3] * 19)
    own = latents([25.0, 19.0, 10.0, 0.5, 25.0], [-3, -3, -3, -3, -4])
    np.testing.assert_allclose(
        p_values(own, null, 1), [0.05, 0.1, 11 / 20, 1.0, np.nan], rtol=1e-15
    )
    np.testing.assert_allclose(
        p_values(own, null, -1), [1.0, 1.0, 11 / 20, 0.05, np.nan], rtol=1e-15
    )
    assert list(n_nulls(own, null)) == [19, 19, 19, 19, 0]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_bin_has_p_values_where_the_smallest_is_at_most_the_level(direction: Direction) -> None:
    enough = fewest_nulls(direction)
    own = latents([-1.0 if direction == -1 else enough + 1.0], [0])
    null = latents(np.arange(float(enough)), [0] * enough)
    assert p_values(own, null, direction)[0] == LEVEL
    one_less = Latents(*(column[1:] for column in null))
    assert np.isnan(p_values(own, one_less, direction)[0])


def test_without_null_latents_there_is_no_p_and_no_q() -> None:
    own, none = latents([1.0, 2.0], [0, -1]), latents([], [])
    assert list(n_nulls(own, none)) == [0, 0]
    p = p_values(own, none, 1)
    assert np.isnan([*p, *q_values(p)]).all()
    assert not len(q_values(p_values(none, own, 1)))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_p_is_uniform_where_latents_and_nulls_are_alike(direction: Direction) -> None:
    rng = GENERATOR(3)
    # Each bin is a separate experiment with its own range of values, which grow with the rate.
    n, bins = 99, 600
    null_bins, own_bins = np.repeat(np.arange(bins), n), np.arange(bins)
    null = latents(rng.gamma(2.0, size=n * bins) + 0.1 * null_bins, null_bins)
    own = latents(rng.gamma(2.0, size=bins) + 0.1 * own_bins, own_bins)
    steps = (1 if direction else 2) / (1 + n)

    def departure(p: np.ndarray) -> float:
        """Return Kolmogorov and Smirnov's p-value, with the steps of p smoothed out."""
        return float(stats.kstest(p - steps * rng.random(len(p)), "uniform").pvalue)

    found = p_values(own, null, direction)
    assert departure(found) > 0.01
    assert found.min() >= steps * (1 - 1e-12)
    # Latents in the upper third of rates against those of all rates: both rate and value differ.
    upper = Latents(*(column[2 * bins // 3 :] for column in own))
    pooled = p_values(
        upper._replace(bin=np.zeros_like(upper.bin)),
        null._replace(bin=np.zeros_like(null.bin)),
        direction,
    )
    assert departure(pooled) < 1e-6
    assert departure(p_values(own._replace(value=own.value + 5.0), null, direction)) < 1e-6


def test_q_of_the_example_of_benjamini_and_hochberg() -> None:
    q = q_values(np.array(PUBLISHED))
    assert (q <= 0.05).sum() == 4
    # p m / i, then the smallest of what follows.
    assert q[3] == pytest.approx(0.0095 * 15 / 4, rel=1e-14)
    assert q[4] == pytest.approx(0.0201 * 15 / 5, rel=1e-14)
    assert q[5] == q[6] == pytest.approx(0.0298 * 15 / 7, rel=1e-14)
    assert q[14] == 1.0
    order = GENERATOR(4).permutation(18)
    mixed = np.array([*PUBLISHED, np.nan, np.nan, np.nan])[order]
    np.testing.assert_array_equal(q_values(mixed), np.array([*q, *[np.nan] * 3])[order])


def test_few_of_those_that_beat_placebo_are_nulls_though_all_share_one_null_sample() -> None:
    rng = GENERATOR(5)
    false, missed = [], []
    for _ in range(300):
        null = latents(rng.normal(size=1200), rng.integers(0, 3, 1200))
        shift = np.where(np.arange(200) < 50, 3.0, 0.0)
        own = latents(rng.normal(size=200) + shift, rng.integers(0, 3, 200))
        beats = q_values(p_values(own, null, 1)) <= LEVEL
        false.append(beats[50:].sum() / max(1, beats.sum()))
        missed.append(1 - beats[:50].mean())
    error = np.std(false) / np.sqrt(len(false))
    # The rate is at most 5% times the share of nulls, three quarters, and close to it.
    assert 0.015 < np.mean(false) < 0.0375 + 3 * error
    assert np.mean(missed) < 0.5


def test_latents_stand_in_the_order_of_q_then_of_the_most_extreme_value() -> None:
    value, bins = [3.0, 5.0, 5.0, 9.0, 1.0], [0] * 5
    own = Latents(np.array([8, 6, 4, 2, 0]), np.array(value), np.array(bins))
    q = np.array([0.2, 0.2, 0.2, np.nan, 0.1])
    by_number = [[int(own.latent[i]) for i in ranking(own, q, side)] for side in (1, -1, 0, None)]
    assert by_number == [[0, 4, 6, 8, 2], [0, 8, 4, 6, 2], [0, 4, 6, 8, 2], [0, 4, 6, 8, 2]]
