from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import scipy.stats

from nullsae.statistics.bootstrap import (
    MOST_UNITS,
    Arm,
    ArmCell,
    Resampler,
    grouped,
    unit_statistics,
    weighted,
)

GENERATOR = np.random.default_rng


def one_cell(*columns: np.ndarray, statistic: str = "mean", **keywords: bool) -> Arm:
    return Arm((ArmCell(0, 0, columns),), statistic, **keywords)  # type: ignore[arg-type]


def resampled(arm: Arm, n_resamples: int = 20_000) -> np.ndarray:
    return Resampler(1, n_resamples).members(arm).mean(axis=1)


def test_resamples_of_a_mean_have_the_standard_error_of_theory() -> None:
    data = GENERATOR(1).gamma(2.0, size=200)
    values = resampled(one_cell(data))
    error = data.std() / np.sqrt(len(data))
    assert values.mean() == pytest.approx(data.mean(), abs=5 * error / np.sqrt(20_000))
    assert values.std() == pytest.approx(error, rel=0.02)
    # The third moment of a mean is that of a unit over n^2.
    third = np.mean((data - data.mean()) ** 3) / len(data) ** 2
    assert np.mean((values - values.mean()) ** 3) == pytest.approx(third, rel=0.3)


def test_each_resample_draws_as_many_units_as_there_are() -> None:
    counts = np.concatenate(list(Resampler(3, 5000).counts(12)))
    assert counts.shape == (5000, 12)
    assert set(counts.sum(axis=1)) == {12.0}
    # Counts of a unit are binomial.
    seen = np.bincount(counts.ravel().astype(int), minlength=13)
    expected = scipy.stats.binom(12, 1 / 12).pmf(np.arange(13)) * counts.size
    pooled = [*seen[:4], seen[4:].sum()], [*expected[:4], expected[4:].sum()]
    assert scipy.stats.chisquare(*pooled).pvalue > 1e-3


def test_ratio_of_sums_agrees_with_scipy() -> None:
    rng = GENERATOR(9)
    below = rng.gamma(2.0, size=60)
    above = below * rng.uniform(0.1, 0.6, size=60)
    arm = one_cell(above, below, statistic="ratio", complement=True)
    assert arm.value() == pytest.approx(1 - above.sum() / below.sum(), rel=1e-14)
    theirs = scipy.stats.bootstrap(
        (above, below),
        lambda a, b, axis: 1 - a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=GENERATOR(11),
    )
    ours = resampled(arm)
    assert ours.std() == pytest.approx(theirs.standard_error, rel=0.03)
    assert scipy.stats.ks_2samp(ours, theirs.bootstrap_distribution).pvalue > 1e-3


@pytest.mark.parametrize("n_floors", [1, 2])
def test_relative_is_the_ratio_over_that_of_the_smallest_floor(n_floors: int) -> None:
    rng = GENERATOR(12)
    own, floors = rng.gamma(2.0, size=(2, 15)), rng.gamma(3.0, size=(n_floors, 2, 15))
    arm = one_cell(*own, *floors.reshape(-1, 15), statistic="relative", complement=True)

    def expected(axis: int | None) -> Any:
        sums = own if axis is None else own.sum(axis=1)
        other = floors if axis is None else floors.sum(axis=2)
        return 1 - (sums[0] / sums[1]) / (other[:, 0] / other[:, 1]).min(axis=0)

    assert arm.value() == pytest.approx(expected(1), rel=1e-14)
    assert arm.unit_values() == pytest.approx(expected(None), rel=1e-13)


def test_each_resample_takes_its_own_smallest_floor() -> None:
    """Compared with loops; among two kinds of documents, either floor can be the smaller."""
    rng = GENERATOR(14)
    own = rng.gamma(4.0, size=(2, 12))
    ones = np.ones(12)
    floors = np.stack([np.linspace(1, 3, 12), np.linspace(3, 1, 12)])
    arm = one_cell(*own, floors[0], ones, floors[1], ones, statistic="relative")
    counts = next(Resampler(7, 200).counts(12))
    which, expected = [], []
    for count in counts.astype(int):
        drawn = np.repeat(np.arange(12), count)
        left = floors[:, drawn].sum(axis=1) / len(drawn)
        which.append(left.argmin())
        expected.append(own[0, drawn].sum() / own[1, drawn].sum() / left.min())
    assert 20 < sum(which) < 180
    assert Resampler(7, 200).members(arm)[:, 0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decimals", [1, 8])
def test_rank_correlation_in_each_resample_is_spearmans_ties_included(decimals: int) -> None:
    rng = GENERATOR(13)
    x = rng.normal(size=25).round(decimals)
    y = (0.5 * x + rng.normal(size=25)).round(decimals)
    drawn = rng.integers(0, 25, size=(40, 25))
    counts = np.stack([np.bincount(row, minlength=25) for row in drawn]).astype(np.float64)
    ours = weighted("rank_correlation", (x, y), counts)
    theirs = [scipy.stats.spearmanr(x[row], y[row]).statistic for row in drawn]
    assert ours == pytest.approx(theirs, abs=1e-12)
    arm = one_cell(x, y, statistic="rank_correlation")
    assert arm.value() == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert arm.unit_values() is None


def test_a_column_that_does_not_vary_has_no_rank_correlation() -> None:
    arm = one_cell(np.ones(5), np.arange(5.0), statistic="rank_correlation")
    assert np.isnan(arm.value())


def test_shared_units_are_drawn_once_for_all_cells() -> None:
    rng = GENERATOR(6)
    of_draw, of_unit = rng.normal(size=3), rng.normal(size=30)
    cells = tuple(ArmCell(d, 0, (of_draw[d] + of_unit,)) for d in range(3))
    arm = Arm(cells, units_are_shared=True)
    members = Resampler(1, 20_000).members(arm)
    # Differences between draws are not part of it, since all draws see the same documents.
    assert np.ptp(members - arm.member_values, axis=1).max() < 1e-12
    assert members.mean(axis=1).var() == pytest.approx(of_unit.var() / 30, rel=0.04)


def test_arms_are_paired_in_their_shared_units() -> None:
    rng = GENERATOR(14)
    below = rng.gamma(2.0, size=40)
    difficulty = rng.uniform(0.2, 0.8, size=40)
    noisy = difficulty + 0.1 + rng.normal(0, 0.01, size=40)
    resampler = Resampler(0, 4000)
    one, other = (
        resampler.members(
            one_cell(below * share, below, statistic="ratio", units_are_shared=True)
        ).mean(axis=1)
        for share in (difficulty, noisy)
    )
    theirs = scipy.stats.bootstrap(
        (below * difficulty, below * noisy, below),
        lambda a, b, c, axis: (b.sum(axis=axis) - a.sum(axis=axis)) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        rng=GENERATOR(17),
    )
    assert (other - one).std() == pytest.approx(theirs.standard_error, rel=0.08)
    assert (other - one).std() < one.std() / 10


def test_draws_with_unequal_seeds_and_units_weigh_the_same() -> None:
    cells = (
        ArmCell(0, 0, (np.full(10, 1.0),)),
        ArmCell(0, 1, (np.full(2, 3.0),)),
        ArmCell(1, 0, (np.full(5, 10.0),)),
    )
    arm = Arm(cells)
    assert arm.value() == 6.0  # ((1 + 3) / 2 + 10) / 2
    assert (arm.n_draws, arm.n_seeds, arm.n_units, arm.level) == (2, 1, 17, "draw")
    assert list(arm.member_values) == [2.0, 10.0]
    seeds = Arm(cells[:2])
    assert (seeds.value(), seeds.level) == (2.0, "seed")
    assert list(seeds.member_values) == [1.0, 3.0]
    assert Arm(cells[2:]).level is None


@pytest.mark.parametrize("statistic", ["mean", "ratio"])
def test_the_order_of_cells_and_the_cache_do_not_matter(statistic: str) -> None:
    rng = GENERATOR(18)
    n_columns = 1 if statistic == "mean" else 2
    cells = [ArmCell(d, 0, tuple(rng.gamma(2.0, size=(n_columns, 12)))) for d in range(4)]

    def run(order: list[ArmCell], cache: int) -> bytes:
        resampler = Resampler(7, 300, cache_numbers=cache)
        arm = Arm(tuple(order), statistic, units_are_shared=True)  # type: ignore[arg-type]
        resampler.members(arm)
        list(resampler.counts(5))
        return resampler.members(arm).tobytes()

    expected = run(cells, 1 << 20)
    assert run(cells[::-1], 1 << 20) == expected
    assert run(cells, 0) == expected
    assert run(cells, 300 * 13) == expected  # the second size evicts the first


def test_many_documents_are_resampled_in_groups_without_loss_of_variance() -> None:
    rng = GENERATOR(19)
    n = 3 * MOST_UNITS + 100
    below = rng.gamma(2.0, size=n)
    above = below * rng.uniform(0.1, 0.6, size=n)
    sums = grouped((above, below))
    assert [len(column) for column in sums] == [MOST_UNITS] * 2
    assert sums[0].sum() == pytest.approx(above.sum(), rel=1e-12)
    arm = one_cell(above, below, statistic="ratio", units_are_shared=True)
    share = above.sum() / below.sum()
    linear = np.sqrt(np.sum((above - share * below) ** 2)) / below.sum()
    assert resampled(arm, 1500).std() == pytest.approx(linear, rel=0.1)


def test_units_without_a_denominator_have_no_value_of_their_own() -> None:
    cell = ArmCell(0, 0, (np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0, 4.0])))
    assert list(unit_statistics(cell)) == [0.5, 0.75]


def test_cells_without_units_do_not_count() -> None:
    full = ArmCell(0, 0, (np.array([1.0, 2.0]),))
    arm = Arm((full, ArmCell(0, 1, (np.empty(0),)), ArmCell(1, 0, (np.empty(0),))))
    assert (arm.value(), arm.n_draws, arm.n_seeds, arm.n_units) == (1.5, 1, 1, 2)
    assert np.isnan(Arm((ArmCell(0, 0, (np.empty(0),)),)).value())
    with pytest.raises(ValueError, match="needs units"):
        Resampler(0, 10).members(Arm(()))


def test_shared_units_of_unequal_number_are_refused() -> None:
    cells = (ArmCell(0, 0, (np.ones(3),)), ArmCell(1, 0, (np.ones(4),)))
    with pytest.raises(ValueError, match="same number in all cells"):
        Resampler(0, 10).members(Arm(cells, units_are_shared=True))


def test_ten_thousand_resamples_of_200_units_take_under_half_a_second() -> None:
    data = GENERATOR(27).normal(size=200)
    start = time.process_time()
    resampled(one_cell(data), 10_000)
    assert time.process_time() - start < 0.5
