from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from nullsae.statistics.bootstrap import Arm, Cell, percentile_interval, resample

GENERATOR = np.random.default_rng


def one_cell(numerator: np.ndarray, denominator: np.ndarray | None = None) -> Arm:
    return Arm((Cell(0, 0, numerator, denominator),))


def test_interval_of_a_mean_is_the_normal_interval() -> None:
    data = GENERATOR(1).normal(5.0, 2.0, size=200)
    resamples = resample(one_cell(data), 20_000, GENERATOR(2))
    # Of the bootstrap distribution the standard error is known: population sd over sqrt(n).
    error = data.std() / np.sqrt(len(data))
    assert resamples.mean() == pytest.approx(data.mean(), abs=5 * error / np.sqrt(20_000))
    assert resamples.std() == pytest.approx(error, rel=0.03)
    low, high = percentile_interval(resamples, 0.95)
    expected = scipy.stats.t.interval(0.95, len(data) - 1, data.mean(), scipy.stats.sem(data))
    assert (low, high) == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth, hits, n_trials = 0.7, 0, 400
    for trial in range(n_trials):
        data = GENERATOR([3, trial]).normal(truth, 0.2, size=50)
        low, high = percentile_interval(resample(one_cell(data), 400, GENERATOR(trial)), 0.95)
        hits += low <= truth <= high
    # 0.95 give or take 4 binomial standard errors; 50 units cost about 0.01.
    assert 0.90 <= hits / n_trials <= 0.99


def test_nested_levels_have_the_variance_of_nested_resampling() -> None:
    rng = GENERATOR(4)
    n_draws, n_seeds, n_units = 4, 3, 20
    data = (
        rng.normal(0, 1.0, size=(n_draws, 1, 1))
        + rng.normal(0, 0.7, size=(n_draws, n_seeds, 1))
        + rng.normal(0, 2.0, size=(n_draws, n_seeds, n_units))
    )
    cells = [Cell(d, s, data[d, s]) for d in range(n_draws) for s in range(n_seeds)]
    resamples = resample(Arm(tuple(cells)), 40_000, GENERATOR(5))
    of_units = data.var(axis=2).mean() / (n_draws * n_seeds * n_units)
    of_seeds = data.mean(axis=2).var(axis=1).mean() / (n_draws * n_seeds)
    of_draws = data.mean(axis=(1, 2)).var() / n_draws
    assert resamples.var() == pytest.approx(of_units + of_seeds + of_draws, rel=0.04)
    assert resamples.mean() == pytest.approx(data.mean(), abs=0.02)


def test_shared_units_are_one_sample_for_all_draws() -> None:
    rng = GENERATOR(6)
    of_draw, of_unit = rng.normal(size=3), rng.normal(size=30)
    cells = tuple(Cell(d, 0, of_draw[d] + of_unit) for d in range(3))
    arm = Arm(cells, units_are_shared=True)
    resamples = resample(arm, 40_000, GENERATOR(7), shared=GENERATOR(8))
    # Crossed, not nested: a document's share of the variance is not divided by the draws.
    assert resamples.var() == pytest.approx(of_draw.var() / 3 + of_unit.var() / 30, rel=0.04)


def test_ratio_of_sums_agrees_with_scipy() -> None:
    rng = GENERATOR(9)
    below = rng.gamma(2.0, size=60)
    above = below * rng.uniform(0.1, 0.6, size=60)
    arm = Arm((Cell(0, 0, above, below),), complement=True)
    assert arm.value() == pytest.approx(1 - above.sum() / below.sum(), rel=1e-14)
    ours = resample(arm, 20_000, GENERATOR(10))
    theirs = scipy.stats.bootstrap(
        (above, below),
        lambda a, b, axis: 1 - a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=GENERATOR(11),
    )
    interval = theirs.confidence_interval
    width = interval.high - interval.low
    assert percentile_interval(ours, 0.95) == pytest.approx(tuple(interval), abs=0.03 * width)
    assert ours.std() == pytest.approx(theirs.standard_error, rel=0.03)


def test_a_difference_of_correlated_arms_is_narrower_when_documents_are_paired() -> None:
    rng = GENERATOR(12)
    below = rng.gamma(2.0, size=40)
    difficulty = rng.uniform(0.2, 0.8, size=40)
    trained = Arm((Cell(0, 0, below * difficulty, below),), units_are_shared=True)
    noisy = below * (difficulty + 0.1 + rng.normal(0, 0.01, size=40))
    variant = Arm((Cell(0, 0, noisy, below),), units_are_shared=True)

    def width(shared_seed: int) -> float:
        one = resample(trained, 4000, GENERATOR(13), shared=GENERATOR(14))
        other = resample(variant, 4000, GENERATOR(15), shared=GENERATOR(shared_seed))
        low, high = percentile_interval(other - one, 0.95)
        return high - low

    assert width(14) < width(16) / 10
    # The paired interval is that of scipy's paired bootstrap.
    theirs = scipy.stats.bootstrap(
        (trained.cells[0].numerator, noisy, below),
        lambda a, b, c, axis: (b.sum(axis=axis) - a.sum(axis=axis)) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=GENERATOR(17),
    ).confidence_interval
    assert width(14) == pytest.approx(theirs.high - theirs.low, rel=0.08)


@pytest.mark.parametrize("shared", [False, True])
def test_chunks_and_the_order_of_cells_do_not_matter(shared: bool) -> None:
    rng = GENERATOR(18)
    sizes = [12] * 4 if shared else [12, 3, 7, 1]
    cells = [
        Cell(d, s, rng.normal(size=n), rng.gamma(2.0, size=n))
        for (d, s), n in zip([(0, 0), (0, 1), (1, 0), (2, 0)], sizes, strict=True)
    ]

    def run(chunk: int, order: list[Cell]) -> bytes:
        arm = Arm(tuple(order), units_are_shared=shared)
        streams = {"shared": GENERATOR(19)} if shared else {}
        return resample(arm, 300, GENERATOR(20), chunk_numbers=chunk, **streams).tobytes()

    expected = run(1 << 16, cells)
    assert run(1, cells) == expected
    assert run(97, cells[::-1]) == expected


def test_draws_with_unequal_seeds_and_units_weigh_the_same() -> None:
    cells = (
        Cell(0, 0, np.full(10, 1.0)),
        Cell(0, 1, np.full(2, 3.0)),
        Cell(1, 0, np.full(5, 10.0)),
    )
    arm = Arm(cells)
    assert arm.value() == 6.0  # ((1 + 3) / 2 + 10) / 2
    assert (arm.n_draws, arm.n_seeds, arm.n_units) == (2, 1, 17)
    resamples = resample(arm, 20_000, GENERATOR(21))
    # Draw 0 gives 1, 2 or 3 with shares 1/4, 1/2, 1/4; draw 1 gives 10; the mean of two of them.
    values, counts = np.unique(resamples, return_counts=True)
    expected = {1.0: 1, 1.5: 4, 2.0: 6, 2.5: 4, 3.0: 1, 5.5: 8, 6.0: 16, 6.5: 8, 10.0: 16}
    assert list(values) == sorted(expected)
    shares = np.array([expected[value] for value in values]) / 64
    assert scipy.stats.chisquare(counts, shares * len(resamples)).pvalue > 1e-3


def test_a_single_unit_or_equal_units_never_vary() -> None:
    assert set(resample(one_cell(np.array([0.3])), 200, GENERATOR(22))) == {0.3}
    constant = resample(one_cell(np.full(40, 0.1)), 200, GENERATOR(23))
    assert np.ptp(constant) == 0.0
    assert constant[0] == pytest.approx(0.1, rel=1e-15)


def test_cells_without_units_do_not_count() -> None:
    full = Cell(0, 0, np.array([1.0, 2.0]))
    arm = Arm((full, Cell(0, 1, np.empty(0)), Cell(1, 0, np.empty(0))))
    assert (arm.value(), arm.n_draws, arm.n_seeds, arm.n_units) == (1.5, 1, 1, 2)
    assert np.isnan(Arm((Cell(0, 0, np.empty(0)),)).value())
    with pytest.raises(ValueError, match="without units"):
        resample(Arm(()), 10, GENERATOR(24))


def test_shared_units_of_unequal_number_are_refused() -> None:
    cells = (Cell(0, 0, np.ones(3)), Cell(1, 0, np.ones(4)))
    with pytest.raises(ValueError, match="equal numbers"):
        resample(Arm(cells, units_are_shared=True), 10, GENERATOR(25), shared=GENERATOR(26))


def test_ten_thousand_resamples_of_200_units_take_far_less_than_a_second() -> None:
    import time

    data = GENERATOR(27).normal(size=200)
    start = time.process_time()
    resample(one_cell(data), 10_000, GENERATOR(28))
    assert time.process_time() - start < 0.5
