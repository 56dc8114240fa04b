from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from nullsae.config.metrics import all_metrics
from nullsae.config.statistics import Statistics
from nullsae.statistics.bootstrap import Arm, ArmCell, Documents, Resampler
from nullsae.statistics.components import (
    document_component,
    documents_of,
    interaction_variance,
    seed_variance,
    units_apart,
)
from nullsae.statistics.contrasts import Estimate, estimate, speaks_of, spread_of_difference
from nullsae.statistics.spread import Component, Spread, pooled_seeds, seed_component

GENERATOR = np.random.default_rng
METRIC = {metric.name: metric for metric in all_metrics()}
SETTINGS = Statistics(n_resamples=2000)
RESAMPLER = Resampler(0, 2000)


def seeds_of(values: np.ndarray, draw: int = 0) -> tuple[ArmCell, ...]:
    """Return cells of one draw from values of latents, [n_seeds, n_latents]."""
    return tuple(ArmCell(draw, seed, (row,)) for seed, row in enumerate(values))


def estimated(arm: Arm, others: list[Arm], name: str = "auroc") -> Estimate:
    seeds = seed_variance([arm, *others], RESAMPLER)
    return estimate(arm, METRIC[name], SETTINGS, RESAMPLER, seeds)


def test_two_arms_with_one_pooled_variance_give_students_test() -> None:
    """Their parts err together: 4 degrees of freedom from two times three seeds, not 8."""
    one, other = GENERATOR(1).normal(size=(2, 3))
    pool = pooled_seeds([(one, 0.0), (other, 0.0)])
    assert pool is not None
    parts = [seed_component(pool, 3, Component(0.0, 1)) for _ in range(2)]
    spread = Spread.of([parts[1], parts[0].scaled(-1)])
    theirs = scipy.stats.ttest_ind(other, one, equal_var=True)
    assert spread.df == pytest.approx(theirs.df) == 4
    p = spread.p_two_sided(float(other.mean() - one.mean()))
    assert p == pytest.approx(theirs.pvalue, rel=1e-12)


def test_the_component_of_seeds_is_what_was_planted_whatever_arms_latents_do() -> None:
    """Seeds have variance 0.04; latents differ in spread and number between arms."""
    rng, found = GENERATOR(2), []
    for _ in range(1500):
        arms = []
        for sd, n in ((1.0, 50), (0.3, 20), (2.0, 120)):
            own = 0.2 * rng.normal(size=(3, 1)) + sd * rng.normal(size=(3, n))
            arms.append(Arm(seeds_of(own)))
        pool = seed_variance(arms, RESAMPLER)
        assert pool is not None
        assert pool.df == 6
        found.append(pool.mean_square - pool.of_units)
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(0.04, abs=4 * error)
    assert error < 0.002


def test_an_arm_has_its_own_latents_scatter_and_the_pools_seed_variance() -> None:
    rng = GENERATOR(3)
    own, other = rng.normal(size=(3, 40)), 3 + 2 * rng.normal(size=(5, 30))
    arm, beside = Arm(seeds_of(own)), Arm(seeds_of(other))
    squares = 2 * own.mean(axis=1).var(ddof=1) + 4 * other.mean(axis=1).var(ddof=1)
    latents = own.var(axis=1, ddof=1).mean() / 40
    of_units = (2 * latents + 4 * other.var(axis=1, ddof=1).mean() / 30) / 6
    expected = (max(0.0, squares / 6 - of_units) + latents) / 3
    (part,) = estimated(arm, [beside]).whole
    assert part.variance == pytest.approx(expected, rel=1e-12)
    assert part.df >= 6


def test_seeds_that_do_not_differ_leave_the_scatter_of_latents() -> None:
    """The mean square of few seeds can be near 0, which does not prove that latents do not vary."""
    noise = GENERATOR(4).normal(size=(4, 60))
    noise -= noise.mean(axis=1, keepdims=True)
    (part,) = estimated(Arm(seeds_of(noise)), []).whole
    assert part.variance == pytest.approx(noise.var(axis=1, ddof=1).mean() / 60 / 4, rel=1e-12)
    assert np.isfinite(part.df)


def test_one_seed_borrows_the_variance_of_other_arms_seeds_and_says_so() -> None:
    rng = GENERATOR(5)
    alone = Arm(seeds_of(rng.normal(size=(1, 50))))
    others = [
        Arm(
            tuple(
                cell
                for draw in range(3)
                for cell in seeds_of(rng.normal(size=(4, 1)) + rng.normal(size=(4, 50)), draw)
            )
        )
    ]
    pool = seed_variance([alone, *others], RESAMPLER)
    assert pool is not None
    assert pool.df == 9
    found = estimated(alone, others)
    own = alone.cells[0].columns[0]
    (part,) = found.whole
    assert part.variance == pytest.approx(pool.variance + own.var(ddof=1) / 50, rel=1e-12)
    assert part.variance > 10 * own.var(ddof=1) / 50
    variant = estimated(others[0], [alone])
    said = speaks_of(found, variant, METRIC["auroc"], ("trained", "step0"))
    assert said.endswith("seeds of one draw, by the variance of other arms' seeds of trained")
    # If no arm has seeds, there is nothing to borrow, and the interval is about latents.
    found = estimated(alone, [Arm(tuple(c for c in others[0].cells if c.seed == 0))])
    assert not found.borrows_seeds
    assert found.whole[0].variance == pytest.approx(own.var(ddof=1) / 50, rel=1e-12)


def test_what_seeds_share_of_documents_counts_once() -> None:
    """Means over documents of equal weight, for which every part has a closed form."""
    rng = GENERATOR(6)
    n, n_seeds = 80, 3
    data = 2 * rng.normal(size=n) + rng.normal(size=(2, n_seeds, n))
    ones = np.ones(n)
    arms = [
        Arm(
            tuple(ArmCell(0, s, (row, ones)) for s, row in enumerate(rows)),
            "ratio",
            units_are_shared=True,
        )
        for rows in data
    ]
    resampler = Resampler(0, 20_000)
    off = data - data.mean(axis=1, keepdims=True)
    apart = off.var(axis=2, ddof=1).sum(axis=1) / (n * n_seeds * (n_seeds - 1))
    found = units_apart(arms[0], resampler.members(arms[0]))
    assert found is not None
    assert found.variance == pytest.approx(apart[0], rel=0.05)
    square = data.mean(axis=2).var(axis=1, ddof=1).mean()
    seeds = max(0.0, square - n_seeds * apart.mean()) / n_seeds
    pool = seed_variance(arms, resampler)
    own, other = (estimate(arm, METRIC["cosine"], SETTINGS, resampler, pool) for arm in arms)
    # Documents are hard for both arms alike, so they drop out of the difference.
    spread = spread_of_difference(own, other)
    assert isinstance(spread, Spread)
    difference = data[1].mean(axis=0) - data[0].mean(axis=0)
    documents = max(0.0, difference.var(ddof=1) / n - apart.sum())
    expected = np.sqrt(2 * seeds + apart.sum() + documents)
    assert spread.standard_error == pytest.approx(expected, rel=0.05)
    alone = Spread.of([*own.whole])
    assert alone.standard_error < data[0].mean(axis=0).std() / np.sqrt(n)


def test_members_that_move_together_have_no_part_of_their_own() -> None:
    rng = GENERATOR(7)
    common = rng.normal(size=(5000, 1))
    assert interaction_variance(common + np.array([[1.0, 2.0, 3.0]])) == pytest.approx(0, abs=1e-25)
    apart = common + rng.normal(size=(5000, 4))
    assert interaction_variance(apart) == pytest.approx(1 / 4, rel=0.05)
    assert interaction_variance(common) == 0.0


@pytest.mark.parametrize(
    "cells",
    [
        (),
        (ArmCell(0, 0, (np.ones(3),)), ArmCell(1, 0, (np.ones(3),))),
        (ArmCell(0, 0, (np.ones(1),)), ArmCell(0, 1, (np.ones(3),))),
        (ArmCell(0, 0, (np.array([np.nan, 1.0]),)), ArmCell(0, 1, (np.ones(2),))),
        (ArmCell(0, 0, (np.ones(2),), reason="no floor"), ArmCell(0, 1, (np.ones(2),))),
    ],
)
def test_draws_without_seeds_or_without_values_do_not_enter_the_pool(
    cells: tuple[ArmCell, ...],
) -> None:
    assert seed_variance([Arm(cells)], RESAMPLER) is None
    other = Arm(seeds_of(GENERATOR(8).normal(size=(3, 20))))
    assert seed_variance([Arm(cells), other], RESAMPLER) == seed_variance([other], RESAMPLER)


def test_a_rank_correlation_keeps_its_latents_in_the_mean_square_of_seeds() -> None:
    rng = GENERATOR(9)
    cells = tuple(ArmCell(0, s, tuple(rng.normal(size=(2, 30)))) for s in range(4))
    arm = Arm(cells, "rank_correlation")
    values = [scipy.stats.spearmanr(*cell.columns).statistic for cell in cells]
    (part,) = estimated(arm, [], "entropy_auroc_correlation").whole
    assert part.variance == pytest.approx(np.var(values, ddof=1) / 4, rel=1e-12)
    assert part.df == 3


def judged(values: np.ndarray, draw: int = 0, seed: int = 0) -> ArmCell:
    """Return latents scored by means over one window per document, [n_latents, n_documents]."""
    n_latents, n_documents = values.shape
    scores = values.mean(axis=1)
    effects = (values - scores[:, None]) / n_documents / n_latents
    whole = Documents(
        effects.sum(axis=0), np.full(n_documents, float(n_latents)), float((effects**2).sum())
    )
    return ArmCell(draw, seed, (scores,), documents=whole)


def test_latents_and_documents_are_two_ways_of_clusters() -> None:
    """Compared with Owen's (2007) closed form for a full table: rows plus columns minus cells."""
    rng = GENERATOR(10)
    n, m = 40, 30
    data = rng.normal(size=(n, 1)) + 2 * rng.normal(size=m) + 3 * rng.normal(size=(n, m))
    own = estimated(Arm((judged(data),)), [])
    assert own.documents is not None
    part = document_component(own.documents)
    assert part is not None
    of_documents = data.mean(axis=0).var(ddof=1) / m
    both = ((data - data.mean(axis=1, keepdims=True)) ** 2).sum() / (n * m) ** 2
    assert part.variance == pytest.approx(of_documents - both, rel=1e-12)
    assert part.df == pytest.approx(m - 1)
    latents = data.mean(axis=1).var(ddof=1) / n
    low, high = own.interval or (0, 0)
    alone = Arm((ArmCell(0, 0, (data.mean(axis=1),)),))
    narrow = estimated(alone, []).interval or (0, 0)
    ratio = np.sqrt((latents + part.variance) / latents)
    assert (high - low) / (narrow[1] - narrow[0]) == pytest.approx(ratio, rel=0.02)


def test_the_variance_of_documents_is_what_was_planted() -> None:
    """The true variance of means is (rows + both) / n + (columns + both) / m - both / n m."""
    rng, found, means = GENERATOR(11), [], []
    n, m = 20, 25
    for _ in range(3000):
        data = rng.normal(size=(n, 1)) + rng.normal(size=m) + 2 * rng.normal(size=(n, m))
        documents = documents_of(Arm((judged(data),)))
        assert documents is not None
        whole = m / (m - 1) * (documents.effect**2).sum() - documents.held
        found.append(data.mean(axis=1).var(ddof=1) / n + whole)
        means.append(data.mean())
    truth = 1 / n + 1 / m + 4 / (n * m)
    assert np.mean(found) == pytest.approx(truth, rel=0.03)
    assert np.var(means) == pytest.approx(truth, rel=0.1)


def test_documents_that_are_hard_for_both_arms_drop_out_of_the_difference() -> None:
    rng = GENERATOR(12)
    hard = 5 * rng.normal(size=30)
    one, other = (estimated(Arm((judged(hard + rng.normal(size=(40, 30))),)), []) for _ in range(2))
    spread = spread_of_difference(one, other)
    assert isinstance(spread, Spread)
    assert one.interval is not None
    assert spread.standard_error < (one.interval[1] - one.interval[0]) / 20
    assert (
        speaks_of(one, other, METRIC["auroc"], ("trained", "step0"))
        == "latents and documents of one draw and seed"
    )


def test_what_draws_differ_in_on_documents_counts_once() -> None:
    """Documents move each draw separately: draws account for all of it, documents for nothing."""
    rng = GENERATOR(13)
    n, m, n_draws = 10, 200, 4
    data = rng.normal(size=(n_draws, 1, m)) + 0.1 * rng.normal(size=(n_draws, n, m))
    arm = Arm(tuple(judged(values, draw) for draw, values in enumerate(data)))
    found = estimated(arm, [])
    assert found.documents is not None
    off = data.mean(axis=1) - data.mean(axis=(1, 2))[:, None]
    apart = ((off - off.mean(axis=0)) ** 2).sum() / m**2 / (n_draws * (n_draws - 1))
    assert found.documents.held == pytest.approx(apart, rel=1e-9)
    part = document_component(found.documents)
    assert part is not None
    assert part.variance < 0.3 / m / n_draws
    said = speaks_of(found, found, METRIC["auroc"], ("trained", "step0"))
    assert said == "draws and documents"


def test_one_document_in_effect_has_no_variance_and_is_not_spoken_of() -> None:
    counts = np.array([100.0, 1.0, 1.0])
    documents = Documents(np.array([0.1, -0.05, -0.05]), counts, 0.0)
    assert document_component(documents) is None
    equal = document_component(documents._replace(n_windows=np.full(3, 7.0)))
    assert equal is not None
    assert (equal.variance, equal.df) == (pytest.approx(1.5 * 0.015), pytest.approx(2))
    cell = ArmCell(0, 0, (np.array([0.2, 0.6]),), documents=documents)
    found = estimated(Arm((cell,)), [])
    assert (
        speaks_of(found, found, METRIC["auroc"], ("trained", "step0"))
        == "latents of one draw and seed"
    )
    # If one cell's windows are unknown, so are the documents of the arm.
    assert documents_of(Arm((cell, ArmCell(0, 1, (np.array([0.1, 0.3]),))))) is None
