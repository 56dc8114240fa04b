from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nullsae.corpus import packing
from nullsae.corpus.boundaries import Boundaries
from nullsae.corpus.packing import Packed, Packer

EOS, BOS = 7, 8

lists = st.lists(st.lists(st.integers(0, 99), max_size=20), min_size=1, max_size=12)


@settings(deadline=None)
@given(
    lists,
    st.integers(1, 9),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([1, 5, 2**20]),
)
@example([[0, 0]], 1, 2, False, 2, 2**20)  # one column is also contiguous in column order
def test_packing_equals_joining_by_hand(
    documents: list[list[int]], room: int, n_contexts: int, ends: bool, n_bos: int, buffer: int
) -> None:
    bounds = Boundaries(n_bos > 0, (BOS,) * n_bos, EOS if ends else None, EOS)
    kept = [[*ids, *[EOS] * ends] for ids in documents]
    pairs = [(t, d) for d, ids in enumerate(filter(None, kept)) for t in ids]
    size = n_contexts * room
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BUFFER_TOKENS", buffer)
        packer = Packer(n_contexts, n_bos + room, bounds, Path(name) / "eval")
        for ids in documents:
            packer.add(np.array(ids, dtype=np.int32))
        packer.flush()
        assert packer.n_tokens == len(pairs) + math.ceil(len(pairs) / room) * n_bos
        assert packer.full == (len(pairs) >= size)
        file = Path(name) / "out.safetensors"
        if not packer.full:
            with pytest.raises(ValueError, match=f"{size} needed"):
                packer.write(file)
            assert not file.exists()
            return
        packer.write(file)
        found = load_file(file)
        assert packer.last_document == found["document_id"].max()
        # safetensors' own writer gives the same bytes.
        save_file(found, Path(name) / "again.safetensors")
        assert (Path(name) / "again.safetensors").read_bytes() == file.read_bytes()
    rows = [pairs[start : start + room] for start in range(0, size, room)]
    wanted = [pair for row in rows for pair in [(BOS, row[0][1])] * n_bos + row]
    for name, values in (("input_ids", 0), ("document_id", 1)):
        assert found[name].shape == (n_contexts, n_bos + room)
        assert found[name].dtype == np.int32
        assert found[name].flatten().tolist() == [pair[values] for pair in wanted]


@settings(deadline=None)
@given(lists, lists, st.integers(0, 12))
def test_tokens_after_the_last_checkpoint_are_written_again(
    first: list[list[int]], rest: list[list[int]], n_lost: int
) -> None:
    bounds = Boundaries(False, (), EOS, EOS)
    before, after = ([np.array(ids, np.int32) for ids in part] for part in (first, rest))
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BUFFER_TOKENS", 3)

        def packer(of: str) -> Packer:
            return Packer(None, 1, bounds, Path(name) / of)

        whole, killed, again = packer("whole"), packer("killed"), packer("killed")
        for ids in before:
            killed.add(ids)
        killed.flush()
        saved = killed.packed
        for ids in after[:n_lost]:
            killed.add(ids)
        assert again.restore(saved)
        for ids in after:
            again.add(ids)
        for ids in [*before, *after]:
            whole.add(ids)
        for made, of in ((whole, "a"), (again, "b")):
            made.flush()
            made.write(Path(name) / of)
        assert (Path(name) / "a").read_bytes() == (Path(name) / "b").read_bytes()


def test_files_shorter_than_in_the_checkpoint_are_not_used(tmp_path: Path) -> None:
    packer = Packer(None, 1, Boundaries(False, (), EOS, EOS), tmp_path / "eval")
    packer.add(np.arange(5, dtype=np.int32))
    packer.flush()
    assert packer.restore(Packed(6, 1))
    assert not packer.restore(Packed(7, 1))
    assert not packer.restore(Packed(6, 2))
