from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.config import Latents
from nullsae.latents.windows import Draw, Grid, assign_pools, draw_windows, quantiles


def documents_of(seed: int, n_contexts: int = 40, context: int = 19) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = n_contexts * context
    ids = np.repeat(np.arange(n), rng.integers(1, 70, n))[:n]
    return ids.reshape(n_contexts, context).astype(np.int32)


def sizes(**keys: Any) -> Latents:
    plain: dict[str, Any] = {
        "n_quantiles": 5,
        "explain_active_windows": 8,
        "explain_silent_windows": 6,
        "score_active_windows": 10,
        "score_silent_windows": 7,
    }
    return Latents(**{**plain, **keys})


# --- the grid ---------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), context=st.integers(4, 24), length=st.integers(2, 10))
@settings(max_examples=40, deadline=None)
def test_a_window_crosses_documents_or_contexts(seed: int, context: int, length: int) -> None:
    length = min(length, context)
    documents = documents_of(seed, 12, context)
    grid = Grid.cut(documents, length)
    flat = documents.ravel()
    assert grid.n_windows == 12 * (context // length)
    starts = grid.start(np.arange(grid.n_windows))
    expected = np.full(len(flat), -1)
    for window, start in enumerate(starts):
        span = np.arange(start, start + length)
        assert len(set(span // context)) == 1
        found = set(flat[span].tolist())
        assert grid.document[window] == (found.pop() if len(found) == 1 else -1)
        if grid.document[window] >= 0:
            expected[span] = window
    np.testing.assert_array_equal(grid.window_of(np.arange(len(flat))), expected)


def test_a_grid_by_hand_differs() -> None:
    documents = np.array([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2, 3]])
    grid = Grid.cut(documents, 3)
    assert grid.document.tolist() == [0, 1, 1, -1]
    assert grid.start(np.arange(4)).tolist() == [0, 3, 7, 10]
    assert grid.window_of(np.arange(14)).tolist() == [0, 0, 0, 1, 1, 1, -1, 2, 2, 2, *[-1] * 4]


# --- the pools --------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_document_is_in_both_pools_or_the_pools_are_unequal(seed: int) -> None:
    """delphi: 10 of 50 test windows were explainer windows."""
    grid = Grid.cut(documents_of(seed), 4)
    pools = assign_pools(grid, np.random.default_rng(seed))
    inside = grid.document >= 0
    assert set(pools[~inside].tolist()) <= {-1}
    assert set(pools[inside].tolist()) <= {0, 1}
    explain = set(grid.document[pools == 0].tolist())
    score = set(grid.document[pools == 1].tolist())
    assert not explain & score
    largest = np.bincount(grid.document[inside]).max()
    assert abs(int((pools == 0).sum()) - int((pools == 1).sum())) <= largest


def test_pools_depend_on_something_other_than_documents_and_generator() -> None:
    grid = Grid.cut(documents_of(1), 4)
    one, same, other = (assign_pools(grid, np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    # Which pool a document lands in is chance: neither the first nor the longest is fixed.
    first = [int(assign_pools(grid, np.random.default_rng(s))[0]) for s in range(40)]
    assert 8 <= sum(first) <= 32


def test_a_split_without_whole_windows_gives_a_traceback() -> None:
    grid = Grid.cut(np.arange(12).reshape(2, 6), 3)
    assert assign_pools(grid, np.random.default_rng(0)).tolist() == [-1] * 4


# --- the draws --------------------------------------------------------------------------------


@given(
    peaks=st.lists(st.floats(0.125, 9, width=32), max_size=60),
    n_quantiles=st.integers(1, 12),
)
def test_quantiles_are_unequal_or_out_of_order(peaks: list[float], n_quantiles: int) -> None:
    values = np.array(peaks, dtype=np.float32)
    found = quantiles(values, n_quantiles)
    counts = np.bincount(found, minlength=n_quantiles)
    assert len(counts) == n_quantiles
    assert counts.max() - counts.min() <= 1
    for strong in range(n_quantiles - 1):
        upper, lower = values[found == strong], values[found > strong]
        if len(upper) and len(lower):
            assert upper.min() >= lower.max()


def example(seed: int = 0, n_windows: int = 300, share: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    active = np.flatnonzero(rng.random(n_windows) < share)
    return {
        "active_windows": active,
        "peaks": rng.random(len(active)).astype(np.float32) + 0.1,
        "pools": rng.integers(-1, 2, n_windows).astype(np.int8),
    }


def drawn(case: dict[str, np.ndarray], seed: int = 0, **keys: Any) -> dict[tuple[str, bool], Draw]:
    inside = case["pools"][case["active_windows"]] >= 0
    found = draw_windows(
        case["active_windows"][inside],
        case["peaks"][inside],
        case["pools"],
        sizes(**keys),
        np.random.default_rng(seed),
    )
    assert [(draw.pool, draw.active) for draw in found] == [
        *(("explain", True), ("explain", False)),
        *(("score", True), ("score", False)),
    ]
    return {(draw.pool, draw.active): draw for draw in found}


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_windows_repeat_leak_between_pools_or_are_not_what_they_say(
    seed: int, share: float
) -> None:
    case = example(seed, share=share)
    found = drawn(case, seed)
    active = set(case["active_windows"].tolist())
    limits = {
        ("explain", True): 8,
        ("explain", False): 6,
        ("score", True): 10,
        ("score", False): 7,
    }
    for (pool, fires), draw in found.items():
        windows = draw.window.tolist()
        assert windows == sorted(set(windows)), "without replacement, ascending"
        mine = np.flatnonzero(case["pools"] == ("explain", "score").index(pool)).tolist()
        candidates = {window for window in mine if (window in active) == fires}
        assert set(windows) <= candidates
        # Scoring takes at most 2 of each of 5 quantiles.
        enough = len(candidates) >= (5 * limits[pool, fires] if pool == "score" else 0)
        if enough or not fires:
            assert len(windows) == min(limits[pool, fires], len(candidates))
        assert (draw.quantile is None) != fires


def test_scoring_windows_are_not_balanced_over_quantiles() -> None:
    case = example(3, n_windows=600)
    peak = dict(zip(case["active_windows"].tolist(), case["peaks"].tolist(), strict=True))
    draw = drawn(case)["score", True]
    assert draw.quantile is not None
    assert np.bincount(draw.quantile).tolist() == [2, 2, 2, 2, 2]
    mine = np.array([w for w in peak if case["pools"][w] == 1])
    slices = quantiles(np.array([peak[w] for w in mine]), 5)
    wanted = dict(zip(mine.tolist(), slices.tolist(), strict=True))
    assert [wanted[w] for w in draw.window.tolist()] == draw.quantile.tolist()


def test_explaining_windows_are_the_strongest_instead_of_a_random_sample() -> None:
    case = example(4, n_windows=600)
    rank = np.zeros(600)
    mine = case["active_windows"][case["pools"][case["active_windows"]] == 0]
    peaks = case["peaks"][np.isin(case["active_windows"], mine)]
    rank[mine[np.argsort(-peaks)]] = np.arange(len(mine)) / len(mine)
    means = [float(rank[drawn(case, seed)["explain", True].window].mean()) for seed in range(60)]
    # 60 x 8 uniform ranks: mean 1/2, standard error sqrt(1/12/480).
    assert np.mean(means) == pytest.approx(0.5, abs=5 * (1 / 12 / 480) ** 0.5)


def test_few_windows_give_a_traceback() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    found = draw_windows(
        nothing, nothing.astype(np.float32), np.array([0, 1, 1]), sizes(), np.random.default_rng(0)
    )
    assert [len(draw.window) for draw in found] == [0, 1, 0, 2]
