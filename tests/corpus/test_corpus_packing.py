from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.corpus.prepare import Packer

EOS = 7


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 99), max_size=20), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 6),
)
def test_packing_equals_joining_by_hand(
    documents: list[list[int]], context_tokens: int, n_contexts: int
) -> None:
    packer = Packer(n_contexts, context_tokens, EOS)
    for ids in documents:
        packer.add(np.array(ids, dtype=np.int32))
    pairs = [(t, d) for d, ids in enumerate(documents) for t in [*ids, EOS]]
    size = n_contexts * context_tokens
    assert packer.n_tokens == len(pairs)
    assert packer.full == (len(pairs) >= size)
    if not packer.full:
        with pytest.raises(ValueError, match=f"{size} needed"):
            packer.contexts()
        return
    tokens, document_id = packer.contexts()
    assert tokens.shape == document_id.shape == (n_contexts, context_tokens)
    assert tokens.dtype == document_id.dtype == np.int32
    flat = zip(tokens.flatten().tolist(), document_id.flatten().tolist(), strict=True)
    assert list(flat) == pairs[:size]
