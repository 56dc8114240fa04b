from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.corpus.boundaries import Boundaries
from nullsae.corpus.prepare import Packer

EOS, BOS = 7, 8


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 99), max_size=20), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2),
)
def test_packing_equals_joining_by_hand(
    documents: list[list[int]], room: int, n_contexts: int, ends: bool, n_bos: int
) -> None:
    bounds = Boundaries(n_bos > 0, (BOS,) * n_bos, EOS if ends else None, EOS)
    packer = Packer(n_contexts, n_bos + room, bounds)
    for ids in documents:
        packer.add(np.array(ids, dtype=np.int32))
    kept = [[*ids, *[EOS] * ends] for ids in documents]
    pairs = [(t, d) for d, ids in enumerate(filter(None, kept)) for t in ids]
    size = n_contexts * room
    assert packer.n_tokens == len(pairs) + math.ceil(len(pairs) / room) * n_bos
    assert packer.full == (len(pairs) >= size)
    if not packer.full:
        with pytest.raises(ValueError, match=f"{size} needed"):
            packer.contexts()
        return
    tokens, document_id = packer.contexts()
    assert tokens.shape == document_id.shape == (n_contexts, n_bos + room)
    assert tokens.dtype == document_id.dtype == np.int32
    flat = zip(tokens.flatten().tolist(), document_id.flatten().tolist(), strict=True)
    rows = [pairs[start : start + room] for start in range(0, size, room)]
    assert list(flat) == [pair for row in rows for pair in [(BOS, row[0][1])] * n_bos + row]
