from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.core.errors import UserError
from nullsae.latents import store
from nullsae.latents.store import Firings, FiringSorter, order_by, ranges


def some_firings(
    seed: int, n_latents: int, n_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return latents, positions and values in token order; one latent always fires."""
    rng = np.random.default_rng(seed)
    dense = rng.random((n_tokens, n_latents), dtype=np.float32) + 0.01
    dense[rng.random(dense.shape) > 0.3 * rng.random(n_latents)] = 0
    dense[:, n_latents // 2] = 1 + np.arange(n_tokens)
    position, latent = np.nonzero(dense)
    return latent, position, dense[position, latent]


def check(found: Firings, latent: np.ndarray, position: np.ndarray, value: np.ndarray) -> None:
    order = np.lexsort((position, latent))
    np.testing.assert_array_equal(found.latent, latent[order])
    np.testing.assert_array_equal(found.position, position[order])
    np.testing.assert_array_equal(found.value, value[order])


@given(
    seed=st.integers(0, 1000),
    run=st.integers(1, 300),
    piece=st.integers(1, 300),
    batch=st.integers(1, 400),
    shuffled=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_firings_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    run: int,
    piece: int,
    batch: int,
    shuffled: bool,
) -> None:
    """For any number sorted, added or assembled at a time, and for tokens in any order."""
    folder = tmp_path_factory.mktemp("sorter")
    latent, position, value = some_firings(seed, 9, 60)
    given_order = np.arange(len(latent))
    if shuffled:
        by_token = np.random.default_rng(seed).permutation(60)
        given_order = np.argsort(by_token[position], kind="stable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "RUN_FIRINGS", run)
        patch.setattr(store, "PIECE_FIRINGS", piece)
        sorter = FiringSorter(folder, n_latents=9, n_tokens=60)
        for start in range(0, len(latent), batch):
            part = given_order[start : start + batch]
            sorter.add(latent[part], position[part], value[part])
        found = sorter.sorted()
        check(found, latent, position, value)
        pieces = list(found.pieces(20))
    assert {file.name for file in folder.iterdir()} == {"sorted.position", "sorted.value"}
    assert all(len(part.position) <= max(piece, 20) or part.n_latents == 1 for _, part in pieces)
    assert all(len(part.position) <= max(piece, 20) for _, part in pieces)
    check(
        Firings(
            found.offsets,
            np.concatenate([part.position for _, part in pieces]),
            np.concatenate([part.value for _, part in pieces]),
        ),
        latent,
        position,
        value,
    )
    for (first, part), (later, _) in pairwise(pieces):
        if first == later:  # the same latent continues, in other contexts
            assert part.position[-1] // 20 < found.position[found.of(first)][-1] // 20


def test_more_than_65536_latents_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    latent = rng.integers(0, 200_000, 3000)
    position, value = np.arange(3000), rng.random(3000, dtype=np.float32)
    sorter = FiringSorter(tmp_path, n_latents=200_000, n_tokens=3000)
    sorter.add(latent, position, value)
    found = sorter.sorted()
    assert found.n_latents == 200_000
    check(found, latent, position, value)


def test_no_firings_give_one_empty_piece(tmp_path: Path) -> None:
    found = FiringSorter(tmp_path, n_latents=3, n_tokens=10).sorted()
    assert found.offsets.tolist() == [0, 0, 0, 0]
    assert len(found.position) == 0
    assert [(first, part.n_latents) for first, part in found.pieces(5)] == [(0, 3)]


def test_positions_beyond_32_bits_do_not_wrap_around(tmp_path: Path) -> None:
    sorter = FiringSorter(tmp_path, n_latents=2, n_tokens=2**33)
    sorter.add(np.array([1, 0]), np.array([2**32 + 5, 2**33 - 1]), np.ones(2, np.float32))
    assert sorter.sorted().position.tolist() == [2**33 - 1, 2**32 + 5]


@given(st.lists(st.integers(0, 2**21), max_size=200))
@settings(max_examples=40, deadline=None)
def test_equal_keys_keep_their_order(keys: list[int]) -> None:
    given_keys = np.array(keys, dtype=np.uint32)
    np.testing.assert_array_equal(order_by(given_keys), np.argsort(given_keys, kind="stable"))


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=30), most=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_ranges_are_small_enough_and_leave_no_latent_out(counts: list[int], most: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    found = list(ranges(offsets, most))
    assert [first for first, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(counts)
    for first, end in found:
        assert end == first + 1 or offsets[end] - offsets[first] <= most


def test_a_full_disk_gives_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    sorter = FiringSorter(tmp_path, n_latents=2, n_tokens=10)
    with open("/dev/full", "wb") as full:
        sorter._runs._streams["value"].close()
        sorter._runs._streams["value"] = full
        sorter.add(np.zeros(1, int), np.zeros(1, int), np.ones(1, np.float32))
        with pytest.raises(UserError, match=r"runs\.value: cannot be written: No space left"):
            sorter.sorted()
        with contextlib.suppress(OSError):
            full.close()
