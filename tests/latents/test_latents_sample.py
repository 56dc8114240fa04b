from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from firings import sort_firings
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nullsae.core.errors import UserError
from nullsae.latents.sample import FiringReader, activations_in, write_firings
from nullsae.latents.store import Firings


def some_firings(seed: int = 0, n_latents: int = 8, n_tokens: int = 200) -> Firings:
    rng = np.random.default_rng(seed)
    dense = rng.random((n_tokens, n_latents), dtype=np.float32) + 0.1
    dense[rng.random(dense.shape) > rng.random(n_latents) / 2] = 0
    dense[:, 3] = 0
    position, latent = np.nonzero(dense)
    return sort_firings(latent, position.astype(np.uint32), dense[position, latent], n_latents)


@given(seed=st.integers(0, 1000), length=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_stretches_of_activations_equal_the_dense_row(seed: int, length: int) -> None:
    firings = some_firings(seed)
    start = np.random.default_rng(seed).integers(0, 201 - length, 12)
    for latent in range(8):
        own = firings.of(latent)
        dense = np.zeros(200, np.float32)
        dense[firings.position[own]] = firings.value[own]
        found = activations_in(firings.position[own], firings.value[own], start, length)
        np.testing.assert_array_equal(found, dense[start[:, None] + np.arange(length)])


@pytest.mark.parametrize("piece", [3, 2**19])
def test_firings_come_back_from_disk_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("nullsae.latents.sample.PIECE_FIRINGS", piece)
    firings = some_firings()
    chosen = np.array([0, 3, 4, 7])
    write_firings(tmp_path / "firings.safetensors", chosen, firings)
    reader = FiringReader.open(tmp_path / "firings.safetensors")
    assert reader.latents.tolist() == [0, 3, 4, 7]
    for latent in chosen.tolist():
        own = firings.of(latent)
        position, value = reader.of(latent)
        assert (position.dtype, value.dtype) == (np.uint32, np.float32)
        np.testing.assert_array_equal(position, firings.position[own])
        np.testing.assert_array_equal(value, firings.value[own])
    assert len(reader.of(3)[0]) == 0
    # The plain loader of safetensors sees the same columns.
    arrays = load_file(tmp_path / "firings.safetensors")
    assert {name: (a.dtype.name, a.shape) for name, a in arrays.items()} == {
        "latent": ("int32", (4,)),
        "offset": ("int64", (5,)),
        "position": ("uint32", (int(reader.offset[-1]),)),
        "value": ("float32", (int(reader.offset[-1]),)),
    }
    assert [file.name for file in tmp_path.iterdir()] == ["firings.safetensors"]


def test_no_sampled_latent_gives_a_file_without_firings(tmp_path: Path) -> None:
    write_firings(tmp_path / "firings.safetensors", np.zeros(0, np.int64), some_firings())
    reader = FiringReader.open(tmp_path / "firings.safetensors")
    assert reader.latents.tolist() == []
    with pytest.raises(UserError, match="no firings of latent 5; it contains only those of the 0"):
        reader.of(5)


READ_ONE = """
import json, sys, tracemalloc
from pathlib import Path
from nullsae.latents.sample import FiringReader
reader = FiringReader.open(Path(sys.argv[1]))
reader.of(int(sys.argv[2]))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
tracemalloc.start()
position, value = reader.of(int(sys.argv[2]))
peak = tracemalloc.get_traced_memory()[1]
print(json.dumps([len(position), float(value.sum()), peak, resident() - before]))
"""


def test_the_firings_of_other_latents_are_not_read(tmp_path: Path) -> None:
    """Two latents in a file of 8 GiB that consists mostly of holes in the rare one's neighbour."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    path = tmp_path / "firings.safetensors"
    n, busy = 1000, 2**30
    total = n + busy
    columns = (("offset", "I64", 3, 8), ("position", "U32", total, 4))
    columns += (("value", "F32", total, 4), ("latent", "I32", 2, 4))
    entries, place, starts = {}, 0, {}
    for name, kind, count, size in columns:
        starts[name] = place
        place += count * size
        entries[name] = {"dtype": kind, "shape": [count], "data_offsets": [starts[name], place]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        data = stream.tell()
        stream.truncate(data + place)
        for name, values in (
            ("offset", np.array([0, busy, total])),
            ("latent", np.array([2, 5], np.int32)),
        ):
            stream.seek(data + starts[name])
            stream.write(values.tobytes())
        for name, values in (
            ("position", np.arange(n, dtype=np.uint32)),
            ("value", np.ones(n, np.float32)),
        ):
            stream.seek(data + starts[name] + 4 * busy)
            stream.write(values.tobytes())
    done = subprocess.run(
        [sys.executable, "-c", READ_ONE, path, "5"], capture_output=True, text=True, check=True
    )
    count, total_value, peak, grown = json.loads(done.stdout)
    assert (count, total_value) == (n, 1000.0)
    assert peak < 200_000, "bytes allocated to read 8,000"
    assert grown < 4 * 2**20, "bytes of the file in memory"


def rewritten(path: Path, **changes: np.ndarray) -> None:
    save_file({**load_file(path), **changes}, path)


def test_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "firings.safetensors"
    with pytest.raises(UserError, match="the file is missing; rebuild it with: snakemake"):
        FiringReader.open(path)
    write_firings(path, np.array([0, 4]), some_firings())
    whole = path.read_bytes()
    for size in (0, 4, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"damaged \(.*rebuild it with"):
            FiringReader.open(path)
    offset = offsets_in(path, whole)
    cases: tuple[tuple[dict[str, np.ndarray], str], ...] = (
        ({"other": np.zeros(1)}, "has the keys"),
        ({"offset": offset[::-1].copy()}, "not in order"),
        ({"offset": np.append(offset[:-1], offset[-1] + 1)}, "its offsets end at"),
        ({"latent": np.array([4, 0], np.int32)}, "not in order"),
    )
    for changes, message in cases:
        path.write_bytes(whole)
        rewritten(path, **changes)
        with pytest.raises(UserError, match=message):
            FiringReader.open(path)
    path.write_bytes(whole)
    rewritten(path, value=-load_file(path)["value"])
    with pytest.raises(UserError, match="the firings of latent 4 are not in order"):
        FiringReader.open(path).of(4)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="no firings of latent 3; it contains only those of the 2"):
        FiringReader.open(path).of(3)


def offsets_in(path: Path, whole: bytes) -> np.ndarray:
    path.write_bytes(whole)
    return FiringReader.open(path).offset
