from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firings import sort_firings
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.config.latents import Latents
from nullsae.latents.silent import N_COMPANIONS, HardSilence, TokenIndex
from nullsae.latents.split import Split
from nullsae.latents.windows import Candidates, Draw, Grid, draw_windows

LENGTH, N_LATENTS, VOCAB = 4, 14, 30
KINDS = ("random", "co_occurring", "nearest")


def sizes(**keys: Any) -> Latents:
    plain: dict[str, Any] = {
        "window_tokens": LENGTH,
        "n_quantiles": 3,
        "explain_active_windows": 4,
        "explain_silent_windows": 4,
        "score_active_windows": 6,
        "score_silent_windows": 5,
        "silent_windows": KINDS,
    }
    return Latents(**{**plain, **keys})


def silence_of(
    fires: list[list[int]], pools: list[int], tokens: np.ndarray | None = None
) -> HardSilence:
    """Return windows of LENGTH tokens, one document each; `fires` lists the active ones."""
    n = len(pools)
    grid = Grid.cut(np.repeat(np.arange(n), LENGTH).reshape(n, LENGTH), LENGTH)
    latent = np.repeat(np.arange(len(fires)), [len(windows) for windows in fires])
    window = np.array([w for windows in fires for w in windows], dtype=np.int64)
    active = sort_firings(latent, window, np.ones(len(window), dtype=np.float32), len(fires))
    ids = np.zeros(n * LENGTH, dtype=np.int64) if tokens is None else tokens.ravel()
    split = Split(ids, grid.document.repeat(LENGTH), LENGTH, None, Path("manifest.json"))
    return HardSilence(active, grid, np.array(pools, dtype=np.int8), split)


def drawn(
    silence: HardSilence, activations: np.ndarray, latent: int, seed: int, settings: Latents
) -> list[Draw]:
    mine = silence.active.of(latent)
    generators = (np.random.default_rng([seed, latent, i]) for i in range(2))
    window, grid = silence.active.position[mine], silence.grid
    active = Candidates(
        np.array([len(window)]), window, grid.start(window), silence.active.value[mine]
    )
    silent = silence.pools.copy()
    silent[window] = -1
    draws = draw_windows(active, silence.pools[window], silent, grid, settings, next(generators))

    def values(start: np.ndarray) -> np.ndarray:
        return activations[start[:, None] + np.arange(LENGTH)]

    found = draws + silence.draw(latent, draws, values, settings, next(generators))
    for draw in found:
        np.testing.assert_array_equal(draw.start, grid.start(draw.window))
    return found


def case(seed: int, share: float, n_windows: int = 80) -> tuple[HardSilence, np.ndarray]:
    """Return random firings, more in first halves of windows; activations [n_tokens, n_latents]."""
    rng = np.random.default_rng(seed)
    shares = share * rng.random(N_LATENTS)
    dense = rng.random((n_windows * LENGTH, N_LATENTS)).astype(np.float32)
    dense[rng.random(dense.shape) > shares] = 0
    tokens = np.minimum(rng.geometric(0.15, n_windows * LENGTH) - 1, VOCAB - 1)
    pools = rng.integers(-1, 2, n_windows)
    on = dense.reshape(n_windows, LENGTH, N_LATENTS).max(axis=1) > 0
    fires = [np.flatnonzero(on[:, latent] & (pools >= 0)).tolist() for latent in range(N_LATENTS)]
    return silence_of(fires, pools.tolist(), tokens), dense


# --- what every draw keeps --------------------------------------------------------------------


@given(seed=st.integers(0, 1000), share=st.floats(0, 1), n=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_silent_windows_are_silent_of_their_pool_and_drawn_once(
    seed: int, share: float, n: int
) -> None:
    silence, dense = case(seed, share)
    wanted = sizes(score_silent_windows=n)
    for latent in range(0, N_LATENTS, 5):
        found = drawn(silence, dense[:, latent], latent, seed, wanted)
        by_kind = {d.silent_kind: d.window for d in found if d.pool == "score" and not d.active}
        assert set(by_kind) == set(KINDS)
        fires = dense[:, latent].reshape(-1, LENGTH).max(axis=1) > 0
        n_silent = int((~fires & (silence.pools == 1)).sum())
        for kind, windows in by_kind.items():
            assert windows.tolist() == sorted(set(windows.tolist())), kind
            assert (silence.pools[windows] == 1).all(), kind
            assert not fires[windows].any(), kind
            assert len(windows) <= n
        together = np.concatenate(list(by_kind.values()))
        assert len(set(together.tolist())) == len(together), "two kinds share a window"
        assert len(by_kind["random"]) == min(n, n_silent // 3)
        company = silence.company(latent)
        assert (company[by_kind["co_occurring"]] > 0).all()
        if any(d.pool == "score" and d.active and len(d.window) for d in found):
            assert len(by_kind["nearest"]) == min(n, n_silent // 3)
        again = drawn(silence, dense[:, latent], latent, seed, wanted)
        assert [d.window.tolist() for d in found] == [d.window.tolist() for d in again]


def test_other_kinds_move_neither_random_windows_nor_active_ones() -> None:
    silence, dense = case(3, 0.1, n_windows=200)
    for latent in range(N_LATENTS):
        plain = drawn(silence, dense[:, latent], latent, 0, sizes(silent_windows=("random",)))
        every = drawn(silence, dense[:, latent], latent, 0, sizes())
        assert len(plain) == 4
        assert len(every) == 6
        for one, two in zip(plain, every, strict=False):
            np.testing.assert_array_equal(one.window, two.window)
            assert (one.pool, one.active, one.silent_kind) == (
                two.pool,
                two.active,
                two.silent_kind,
            )


def test_random_windows_are_drawn_for_scoring_only_when_asked_for() -> None:
    silence, dense = case(4, 0.1, n_windows=200)
    found = drawn(silence, dense[:, 2], 2, 0, sizes(silent_windows=("nearest",)))
    kinds = [(d.pool, d.silent_kind) for d in found if not d.active]
    assert kinds == [("explain", "random"), ("score", "nearest")]


def test_a_latent_that_is_rarely_silent_gives_each_kind_its_share() -> None:
    # Silent in 7 windows of the scoring pool. Another latent fires in most of its windows, in all
    # of those 7, and seldom elsewhere.
    pools = [0] * 20 + [1] * 20
    silence = silence_of([[*range(10), *range(20, 33)], [*range(20, 40)]], pools)
    dense = np.isin(np.repeat(np.arange(40), LENGTH), [*range(10), *range(20, 33)])
    activations = dense.astype(np.float32)
    found = drawn(silence, activations, 0, 0, sizes(score_silent_windows=100))
    silent = {d.silent_kind: d.window for d in found if d.pool == "score" and not d.active}
    assert {kind: len(windows) for kind, windows in silent.items()} == dict.fromkeys(KINDS, 2)
    assert set(np.concatenate(list(silent.values())).tolist()) <= set(range(33, 40))


# --- co-occurring -----------------------------------------------------------------------------


def test_companions_equal_those_by_hand() -> None:
    fires = [
        [0, 1, 2, 3],  # the latent: 4 of 10 windows
        [0, 1, 2, 3],  # its twin is never there where it is silent
        [0, 1, 2, 9],  # 3/4 - 4/10
        [*range(10)],  # everywhere: 1 - 1
        [0, 1, 5, 6],  # 2/4 - 4/10
        [5, 6, 7],  # never with it
        [3, 8],  # 1/4 - 2/10
        [],
    ]
    silence = silence_of(fires, [0] * 5 + [1] * 5)
    others, association = silence.companions(0)
    assert others.tolist() == [2, 4, 6]
    np.testing.assert_allclose(association, [0.35, 0.1, 0.05])
    expected = [0.45, 0.45, 0.35, 0.05, 0, 0.1, 0.1, 0, 0.05, 0.35]
    np.testing.assert_allclose(silence.company(0), expected)


def test_windows_with_more_company_come_before_those_with_less() -> None:
    fires = [[0, 1, 2, 3], [], [0, 1, 2, 9], [*range(10)], [0, 1, 5, 6], [5, 6, 7], [3, 8]]
    silence = silence_of(fires, [0] * 3 + [1] * 7)
    dense = np.repeat(np.arange(10) < 4, LENGTH).astype(np.float32)
    # Silent in six scoring windows: 9 (0.35), 5 and 6 (0.1), 8 (0.05), 4 and 7 (no company).
    picks = []
    for seed in range(20):
        kinds: dict[str, Any] = {"silent_windows": ("co_occurring",), "score_silent_windows": 2}
        picks.append(drawn(silence, dense, 0, seed, sizes(**kinds))[3].window.tolist())
    assert {tuple(pick) for pick in picks} == {(5, 9), (6, 9)}, "ties are broken at random"
    kinds = {"silent_windows": ("co_occurring",), "score_silent_windows": 100}
    assert drawn(silence, dense, 0, 0, sizes(**kinds))[3].window.tolist() == [5, 6, 8, 9]


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_companions_equal_those_of_a_matrix_of_all_pairs(seed: int, share: float) -> None:
    silence, dense = case(seed, share)
    on = dense.reshape(-1, LENGTH, N_LATENTS).max(axis=1)[silence.pools >= 0] > 0
    both = on.T.astype(float) @ on
    for latent in range(N_LATENTS):
        others, association = silence.companions(latent)
        ranked = sorted(
            (-(both[latent, j] / both[latent, latent] - on[:, j].mean()), j)
            for j in range(N_LATENTS)
            if both[latent, latent] and both[latent, j] < both[j, j]
        )
        expected = [(j, -minus) for minus, j in ranked if minus < -1e-12][:N_COMPANIONS]
        np.testing.assert_allclose(association, [value for _, value in expected], atol=1e-12)
        # The last bit of either side decides which of two equal ones comes first.
        assert (association > 0).all()
        for j, value in zip(others.tolist(), association.tolist(), strict=True):
            exact = both[latent, j] / both[latent, latent] - on[:, j].mean()
            assert value == pytest.approx(exact, abs=1e-12)
        assert latent not in others


# --- nearest ----------------------------------------------------------------------------------


def test_similarity_equals_that_by_hand() -> None:
    windows = np.array([2, 3, 5, 6])
    tokens = np.array([[1, 1, 2, 3], [1, 2, 4, 4], [3, 5, 5, 5], [1, 6, 6, 6]])
    index = TokenIndex.of(windows, tokens, n_windows=8, n_types=9)
    ln = np.log
    np.testing.assert_allclose(
        index.rarity, [0, ln(4 / 3), ln(4 / 2), ln(4 / 2), ln(4), ln(4), ln(4), 0, 0]
    )
    found = index.similarity(tokens[0], np.array([1.0, 0, 0, 3]))
    # Types 1 (twice), 2 and 3: 1/4, 0 and 3/4 of the activation.
    rare = np.array([2 * ln(4 / 3), ln(2), ln(2)]) / (2 * ln(4 / 3) + 2 * ln(2))
    one, two, three = (np.array([1 / 4, 0, 3 / 4]) + rare) / 2
    np.testing.assert_allclose(found, [0, 0, 1, one + two, 0, three, one, 0])
    # Types that no indexed window contains, which windows across cells may have.
    half = index.similarity(np.array([1, 8]), np.array([1.0, 0]))
    np.testing.assert_allclose(half, [0, 0, 1, 1, 0, 0, 1, 0])


@given(seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_similarity_equals_a_loop_over_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.geometric(0.2, (25, LENGTH)) - 1, VOCAB)
    index = TokenIndex.of(np.arange(25) * 2, tokens, n_windows=50, n_types=VOCAB + 1)
    activations = rng.random(LENGTH) * (rng.random(LENGTH) < 0.6)
    found = index.similarity(tokens[0], activations)
    assert (found[1::2] == 0).all()
    held = [set(row) for row in tokens.tolist()]
    rare = [np.log(25 / sum(token in types for types in held)) for token in tokens[0].tolist()]
    for window, types in enumerate(held):
        inside = np.array([token in types for token in tokens[0].tolist()])
        shares = [
            (values * inside).sum() / values.sum() if values.sum() else 0.0
            for values in (activations, np.array(rare))
        ]
        assert found[2 * window] == pytest.approx(np.mean(shares))


def test_the_same_tokens_without_the_latent_are_the_nearest() -> None:
    """Each active window has a silent double; the others share no token with any."""
    active = np.arange(12).reshape(3, 4)
    other = 100 + np.arange(60).reshape(15, 4)
    tokens = np.concatenate([active, other, active[:, ::-1]])
    silence = silence_of([[0, 1, 2]], [1] * 21, tokens)
    dense = np.zeros(21 * LENGTH, dtype=np.float32)
    dense[[0, 5, 10]] = 1
    kinds: dict[str, Any] = {"silent_windows": ("nearest",), "n_quantiles": 1}
    for seed in range(5):
        found = drawn(silence, dense, 0, seed, sizes(score_silent_windows=3, **kinds))
        assert found[3].window.tolist() == [18, 19, 20]
    # A second round continues with the rest.
    found = drawn(silence, dense, 0, 0, sizes(score_silent_windows=7, **kinds))
    assert set(found[3].window.tolist()) > {18, 19, 20}
    assert len(found[3].window) == 7


def test_each_active_window_takes_one_of_the_nearest() -> None:
    # Ten windows are like the first active window, one is like the second.
    tokens = np.array([[0, 1, 2, 3], [4, 5, 6, 7], *[[0, 1, 2, 9]] * 10, [4, 8, 8, 8]])
    index = TokenIndex.of(np.arange(13), tokens, n_windows=13, n_types=10)
    values = np.ones((2, LENGTH))
    drawn = {
        tuple(index.nearest(tokens[:2], values, np.arange(2, 13), 2, np.random.default_rng(seed)))
        for seed in range(40)
    }
    assert {pair[1] for pair in drawn} == {12}
    assert len({pair[0] for pair in drawn}) > 5, "ties are broken at random"


def test_a_token_that_the_latent_fires_on_counts_more_than_others() -> None:
    tokens = np.array([[0, 1, 2, 3], [0, 8, 8, 8], [1, 9, 9, 9]])
    index = TokenIndex.of(np.arange(3), tokens, n_windows=3, n_types=10)
    for place in (0, 1):
        activations = np.zeros((1, LENGTH))
        activations[0, place] = 0.5
        chosen = index.nearest(
            tokens[:1], activations, np.array([1, 2]), 1, np.random.default_rng(0)
        )
        assert chosen.tolist() == [1 + place]
