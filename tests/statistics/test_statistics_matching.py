from __future__ import annotations

import numpy as np
import pytest

from nullsae.statistics.bootstrap import Arm, ArmCell
from nullsae.statistics.matching import common_bins, half_decades, matched
from nullsae.statistics.spread import Spread

GENERATOR = np.random.default_rng


def cell(
    numbers: list[float] | np.ndarray, strata: list[int], draw: int = 0, seed: int = 0
) -> ArmCell:
    return ArmCell(draw, seed, (np.array(numbers, dtype=float),), strata=np.array(strata))


def test_bins_are_half_decades() -> None:
    shares = np.array([1.0, 0.5, 10**-0.5, 0.3, 0.1, 0.0999, 0.0101, 0.01, 1e-6])
    assert list(half_decades(shares)) == [0, -1, -1, -2, -2, -3, -4, -4, -12]


def test_each_bin_takes_the_smallest_number_of_any_cell() -> None:
    one = Arm((cell(np.zeros(9), [-2] * 4 + [-3] * 3 + [-4, -5]),))
    other = Arm(
        (cell(np.zeros(8), [-2] * 2 + [-3] * 5 + [-4]), cell(np.zeros(9), [-2] * 4 + [-3] * 5, 1))
    )
    # A bin with one latent somewhere says nothing about its spread.
    assert common_bins([one, other]) == {-3: 3, -2: 2}
    assert common_bins([one, Arm((cell([], []),))]) == {-3: 3, -2: 4}
    assert common_bins([one, Arm((cell([1.0, 2.0], [0, 0]),))]) == {}
    assert common_bins([]) == {}
    assert common_bins([one, Arm((ArmCell(0, 0, (np.ones(3),)),))]) == {}


def test_the_value_is_the_expectation_of_resampling_equal_numbers() -> None:
    rng = GENERATOR(1)
    strata = [-2] * 12 + [-3] * 30 + [-4] * 7
    numbers = rng.normal(size=49) + np.array(strata)
    bins = {-4: 5, -3: 6, -2: 9}
    found = matched(Arm((cell(numbers, strata),)), bins)
    of_bin = {b: numbers[np.array(strata) == b] for b in bins}
    drawn = [
        np.concatenate([rng.choice(of_bin[b], n, replace=False) for b, n in bins.items()]).mean()
        for _ in range(20_000)
    ]
    assert found.value == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn) / np.sqrt(20_000))
    exact = sum(n * of_bin[b].mean() for b, n in bins.items()) / 20
    assert found.value == pytest.approx(exact, rel=1e-13)


def test_its_error_is_that_of_a_bootstrap_within_bins() -> None:
    rng = GENERATOR(2)
    strata = [-2] * 12 + [-3] * 30
    numbers = rng.gamma(2.0, size=42) + np.array(strata)
    bins = {-3: 6, -2: 9}
    found = matched(Arm((cell(numbers, strata),)), bins)
    values = np.zeros(100_000)
    variance = 0.0
    for b, n in bins.items():
        units = numbers[np.array(strata) == b]
        means = rng.choice(units, (100_000, len(units))).mean(axis=1)
        values += n / 15 * means
        variance += (n / 15) ** 2 * means.var() * len(units) / (len(units) - 1)
    spread = Spread.of(found.components)
    assert spread.standard_error**2 == pytest.approx(variance, rel=0.02)
    skewness = np.mean((values - values.mean()) ** 3) / values.std() ** 3
    assert spread.skewness == pytest.approx(skewness, rel=0.15)
    assert [part.df for part in found.components] == [29, 11]


def test_draws_are_matched_one_by_one_and_vary_as_a_whole() -> None:
    cells = (
        cell([1.0, 3.0, 10.0, 20.0], [-2, -2, -3, -3], 0),
        cell([2.0, 2.0, 4.0, 30.0, 40.0], [-2, -2, -2, -3, -3], 1),
    )
    found = matched(Arm(cells), {-3: 2, -2: 2})
    values = np.array([(2 + 15) / 2, (8 / 3 + 35) / 2])
    assert found.value == pytest.approx(values.mean(), rel=1e-13)
    (part,) = found.components
    assert part.variance == pytest.approx(values.var(ddof=1) / 2, rel=1e-13)
    assert part.is_whole


def test_seeds_pool_their_variance_at_equal_rates_too() -> None:
    rng = GENERATOR(4)
    strata = [-2] * 10 + [-3] * 20
    weights, sizes = np.array([1 / 3, 2 / 3]), np.array([10, 20])
    data = rng.normal(size=(2, 3, 1)) + rng.normal(size=(2, 3, 30))
    arms = [
        Arm(tuple(cell(row, strata, 0, seed) for seed, row in enumerate(rows))) for rows in data
    ]
    parts = [data[:, :, :10], data[:, :, 10:]]
    values = sum(w * part.mean(axis=2) for w, part in zip(weights, parts, strict=True))
    scatter = np.stack([part.var(axis=2, ddof=1) for part in parts], axis=-1)
    latents = (scatter * weights**2 / sizes).sum(axis=-1)
    bins = common_bins(arms)
    seeds = bins.seeds
    assert bins == {-3: 20, -2: 10}
    assert seeds is not None
    assert (seeds.df, seeds.mean_square) == (4, pytest.approx(values.var(axis=1, ddof=1).mean()))
    assert seeds.of_units == pytest.approx(latents.mean(), rel=1e-12)
    found = matched(arms[0], bins)
    assert found.value == pytest.approx(values[0].mean(), rel=1e-12)
    expected = seeds.variance / 3 + latents[0].mean() / 3
    assert Spread.of(found.components).standard_error ** 2 == pytest.approx(expected, rel=1e-12)
    assert common_bins([Arm(arm.cells[:1]) for arm in arms]).seeds is None


def test_a_difference_that_comes_from_firing_rates_alone_goes_away() -> None:
    rng = GENERATOR(3)

    def arm(n_rare: int, n_frequent: int) -> Arm:
        strata = np.array([-4] * n_rare + [-2] * n_frequent)
        return Arm(
            (cell(0.9 - 0.1 * (strata == -2) + 0.01 * rng.normal(size=len(strata)), list(strata)),)
        )

    one, other = arm(40, 10), arm(10, 40)
    assert one.value() - other.value() > 0.05
    bins = common_bins([one, other])
    assert bins == {-4: 10, -2: 10}
    assert matched(one, bins).value == pytest.approx(matched(other, bins).value, abs=0.01)
