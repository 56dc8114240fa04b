from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firings import pool_of_cells, sort_firings
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nullsae.config.latents import Latents
from nullsae.latents.split import Split
from nullsae.latents.store import Firings
from nullsae.latents.windows import (
    Candidates,
    Draw,
    Grid,
    active_cells,
    centred,
    deal_documents,
    draw_windows,
    pools_of,
    quantiles,
    top_windows,
)


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
def test_no_window_crosses_documents_or_contexts(seed: int, context: int, length: int) -> None:
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
    cell = grid.cell_of(np.arange(len(flat)))
    inside = np.where(cell >= 0, grid.document[cell] >= 0, False)
    np.testing.assert_array_equal(np.where(inside, cell, -1), expected)
    np.testing.assert_array_equal(
        cell < 0, np.arange(len(flat)) % context >= context // length * length
    )


def test_a_grid_equals_that_by_hand() -> None:
    documents = np.array([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2, 3]])
    grid = Grid.cut(documents, 3)
    assert grid.document.tolist() == [0, 1, 1, -1]
    assert grid.start(np.arange(4)).tolist() == [0, 3, 7, 10]
    assert grid.cell_of(np.arange(14)).tolist() == [0, 0, 0, 1, 1, 1, -1, 2, 2, 2, 3, 3, 3, -1]


def test_the_pool_of_a_document_without_a_whole_cell_is_known() -> None:
    grid = Grid.cut(np.array([[0, 0, 0, 1, 1, 1, 2, 2, 3]]), 3)
    dealt = deal_documents(grid, np.random.default_rng(0))
    assert len(dealt) == 2
    found = pools_of(np.array([0, 1, 2, 3, -1]), dealt)
    assert found.tolist() == [*dealt.tolist(), 0, 1, -1]
    np.testing.assert_array_equal(
        pool_of_cells(grid, np.random.default_rng(0)), [*dealt.tolist(), -1]
    )


# --- where active windows lie -----------------------------------------------------------------


def random_activations(seed: int, context: int, length: int) -> tuple[np.ndarray, Split, Grid]:
    """Return activations [n_tokens, 3] with few levels, so ties, and documents of any length."""
    rng = np.random.default_rng(seed)
    documents = documents_of(seed, 8, context)
    dense = np.ceil(rng.random((documents.size, 3)) * 5).astype(np.float32)
    dense[rng.random(dense.shape) > rng.random(3)] = 0
    split = Split(documents.ravel(), documents.ravel(), context, None, Path("manifest.json"))
    return dense, split, Grid.cut(documents, length)


def firings_of(dense: np.ndarray) -> Firings:
    position, latent = np.nonzero(dense)
    return sort_firings(latent, position.astype(np.uint32), dense[position, latent], dense.shape[1])


@given(seed=st.integers(0, 1000), context=st.integers(4, 24), length=st.integers(2, 9))
@example(seed=348, context=4, length=2)  # nothing fires
@settings(max_examples=60, deadline=None)
def test_cells_equal_those_of_the_dense_matrix(seed: int, context: int, length: int) -> None:
    length = min(length, context)
    dense, _, grid = random_activations(seed, context, length)
    every, peak_at = active_cells(firings_of(dense), grid)
    found = []
    for latent in range(3):
        for cell, start in enumerate(grid.start(np.arange(grid.n_windows)).tolist()):
            inside = dense[start : start + length, latent]
            if inside.any():
                found.append((latent, cell, start, inside.max(), start + inside.argmax()))
    if not found:
        assert every.counts.tolist() == [0, 0, 0]
        return
    latent, *rest = (np.array(column) for column in zip(*found, strict=True))
    np.testing.assert_array_equal(np.repeat(np.arange(3), every.counts), latent)
    for one, other in zip((every.window, every.start, every.peak, peak_at), rest, strict=True):
        np.testing.assert_array_equal(one, other)
    whole = every.kept(grid.document[every.window] >= 0)
    inside = grid.document[every.window] >= 0
    np.testing.assert_array_equal(whole.window, every.window[inside])
    np.testing.assert_array_equal(whole.counts, np.bincount(latent[inside], minlength=3))


def centred_by_hand(
    column: np.ndarray, split: Split, context: int, length: int
) -> tuple[list[tuple[int, int, float]], int]:
    """Return a latent's centred windows by loops (cell, start, peak), and how many had no room."""
    per_context, spans, n_too_short = context // length, [], 0
    for cell in range(len(column) // context * per_context):
        at = cell // per_context * context + cell % per_context * length
        inside = column[at : at + length]
        if not inside.any():
            continue
        peak = at + int(inside.argmax())
        home = [
            t
            for t in range(peak // context * context, (peak // context + 1) * context)
            if split.document[t] == split.document[peak]
        ]
        if len(home) < length:
            n_too_short += 1
            continue
        start = min(max(peak - length // 2, home[0]), home[-1] + 1 - length)
        spans.append((cell, start, float(inside.max())))
    kept: list[tuple[int, int, float]] = []
    for span in sorted(spans, key=lambda span: (-span[2], span[1], span[0])):
        if all(abs(span[1] - other[1]) >= length for other in kept):
            kept.append(span)
    return sorted(kept), n_too_short


@given(seed=st.integers(0, 3000), context=st.integers(4, 40), length=st.integers(2, 9))
@settings(max_examples=150, deadline=None)
def test_centred_windows_equal_those_of_a_loop(seed: int, context: int, length: int) -> None:
    length = min(length, context)
    dense, split, grid = random_activations(seed, context, length)
    every, peak_at = active_cells(firings_of(dense), grid)
    found = centred(every, peak_at, grid, split)
    latent = np.repeat(np.arange(3), found.counts)
    n_too_short = 0
    for index in range(3):
        mine = latent == index
        expected, short = centred_by_hand(dense[:, index], split, context, length)
        n_too_short += short
        got = zip(found.window[mine], found.start[mine], found.peak[mine], strict=True)
        assert [(int(w), int(s), float(p)) for w, s, p in got] == expected
    assert found.n_too_short == n_too_short
    for start in found.start.tolist():
        assert start // context == (start + length - 1) // context, "a window across contexts"
        assert len(set(split.document[start : start + length].tolist())) == 1


def test_the_strongest_windows_come_first() -> None:
    peak = np.array([3, 9, 3, 9, 1], dtype=np.float32)
    active = Candidates(np.array([5]), np.arange(5) * 2, np.arange(5) * 8, peak)
    draw = top_windows(active, 3)
    assert (draw.pool, draw.active, draw.quantile, draw.silent_kind) == ("top", True, None, None)
    assert draw.window.tolist() == [2, 6, 0]
    assert draw.start.tolist() == [8, 24, 0]
    assert len(top_windows(active, 0).start) == 0
    assert len(top_windows(active, 50).start) == 5


# --- the pools --------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_no_document_is_in_both_pools_and_the_pools_are_even(seed: int) -> None:
    """In delphi 10 of 50 test windows were explainer windows."""
    grid = Grid.cut(documents_of(seed), 4)
    pools = pool_of_cells(grid, np.random.default_rng(seed))
    inside = grid.document >= 0
    assert set(pools[~inside].tolist()) <= {-1}
    assert set(pools[inside].tolist()) <= {0, 1}
    explain = set(grid.document[pools == 0].tolist())
    score = set(grid.document[pools == 1].tolist())
    assert not explain & score
    largest = np.bincount(grid.document[inside]).max()
    assert abs(int((pools == 0).sum()) - int((pools == 1).sum())) <= largest


def test_pools_depend_on_documents_and_generator_alone() -> None:
    grid = Grid.cut(documents_of(1), 4)
    one, same, other = (pool_of_cells(grid, np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    # Chance decides which pool a document gets; neither the first nor the longest is fixed.
    first = [int(pool_of_cells(grid, np.random.default_rng(s))[0]) for s in range(40)]
    assert 8 <= sum(first) <= 32


def test_a_split_without_whole_windows_has_empty_pools() -> None:
    grid = Grid.cut(np.arange(12).reshape(2, 6), 3)
    assert pool_of_cells(grid, np.random.default_rng(0)).tolist() == [-1] * 4


# --- the draws --------------------------------------------------------------------------------


@given(
    peaks=st.lists(st.floats(0.125, 9, width=32), max_size=60),
    n_quantiles=st.integers(1, 12),
)
def test_quantiles_are_even_and_in_order(peaks: list[float], n_quantiles: int) -> None:
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
    window, pools = case["active_windows"][inside], case["pools"]
    silent = pools.copy()
    silent[window] = -1
    grid = Grid(4, 12, np.zeros(len(pools), np.int32))
    active = Candidates(
        np.array([len(window)]), window, grid.start(window) + 1, case["peaks"][inside]
    )
    found = draw_windows(
        active, pools[window], silent, grid, sizes(**keys), np.random.default_rng(seed)
    )
    for draw in found:
        np.testing.assert_array_equal(draw.start, grid.start(draw.window) + int(draw.active))
    assert [(draw.pool, draw.active) for draw in found] == [
        *(("explain", True), ("explain", False)),
        *(("score", True), ("score", False)),
    ]
    return {(draw.pool, draw.active): draw for draw in found}


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_windows_are_drawn_once_from_their_pool_and_are_what_they_say(
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
        # Scoring takes at most 2 from each of 5 quantiles.
        enough = len(candidates) >= (5 * limits[pool, fires] if pool == "score" else 0)
        if enough or not fires:
            assert len(windows) == min(limits[pool, fires], len(candidates))
        assert (draw.quantile is None) != fires


def test_scoring_windows_are_balanced_over_quantiles() -> None:
    case = example(3, n_windows=600)
    peak = dict(zip(case["active_windows"].tolist(), case["peaks"].tolist(), strict=True))
    draw = drawn(case)["score", True]
    assert draw.quantile is not None
    assert np.bincount(draw.quantile).tolist() == [2, 2, 2, 2, 2]
    mine = np.array([w for w in peak if case["pools"][w] == 1])
    slices = quantiles(np.array([peak[w] for w in mine]), 5)
    wanted = dict(zip(mine.tolist(), slices.tolist(), strict=True))
    assert [wanted[w] for w in draw.window.tolist()] == draw.quantile.tolist()


def test_explaining_windows_are_a_random_sample_and_not_the_strongest() -> None:
    case = example(4, n_windows=600)
    rank = np.zeros(600)
    mine = case["active_windows"][case["pools"][case["active_windows"]] == 0]
    peaks = case["peaks"][np.isin(case["active_windows"], mine)]
    rank[mine[np.argsort(-peaks)]] = np.arange(len(mine)) / len(mine)
    means = [float(rank[drawn(case, seed)["explain", True].window].mean()) for seed in range(60)]
    # 60 x 8 uniform ranks: mean 1/2, standard error sqrt(1/12/480).
    assert np.mean(means) == pytest.approx(0.5, abs=5 * (1 / 12 / 480) ** 0.5)


def test_few_windows_give_smaller_draws() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    active = Candidates(np.array([0]), nothing, nothing, nothing.astype(np.float32))
    pools = np.array([0, 1, 1], dtype=np.int8)
    grid = Grid(4, 12, np.zeros(3, np.int32))
    found = draw_windows(active, pools[:0], pools, grid, sizes(), np.random.default_rng(0))
    assert [len(draw.window) for draw in found] == [0, 1, 0, 2]
