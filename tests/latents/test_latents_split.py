from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nullsae.core.errors import UserError
from nullsae.core.files import checksum, read_json, write_json
from nullsae.corpus.store import load_tokens
from nullsae.latents.split import LAGS, Split
from small_chain import Chain, flip_byte, tokens_of, write_corpus


def test_mapped_tokens_equal_loaded_ones(chain: Chain) -> None:
    split, loaded = Split.open(chain.eval_tokens), load_tokens(chain.eval_tokens)
    np.testing.assert_array_equal(split.ids, loaded.input_ids.ravel())
    np.testing.assert_array_equal(split.document, loaded.document_id.ravel())
    assert split.ids.dtype == split.document.dtype == np.int32
    assert split.context_tokens == loaded.input_ids.shape[1]
    assert split.n_types == loaded.input_ids.max() + 1
    assert not split.ids.flags.owndata, "the tokens are in memory"
    assert split.separator_token_id is None


@given(seed=st.integers(0, 1000), piece=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_documents_and_pairs_do_not_depend_on_the_pieces(seed: int, piece: int) -> None:
    ids, documents = tokens_of(12, seed=seed, context=20)
    split = Split(ids.ravel(), documents.ravel(), 20, None, Path("manifest.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nullsae.latents.split.PIECE_TOKENS", piece)
        _, first = np.unique(documents, return_index=True)
        assert split.bounds.tolist() == [*first.tolist(), 240]
        assert split.n_documents == len(first)
        expected = [
            int((documents[:, lag:] == documents[:, :-lag]).sum()) for lag in range(1, LAGS + 1)
        ]
        assert split.n_pairs.tolist() == expected
        assert split.n_types == ids.max() + 1
    position = np.arange(240)
    start, end = split.stretch(position)
    for t in position.tolist():
        same = [
            u
            for u in position.tolist()
            if u // 20 == t // 20 and documents.ravel()[u] == documents.ravel()[t]
        ]
        assert (start[t], end[t]) == (same[0], same[-1] + 1)


def test_damaged_tokens_are_refused(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", *tokens_of(6, seed=0))
    flip_byte(manifest.with_name("tokens.safetensors"))
    with pytest.raises(UserError, match=r"tokens.safetensors: damaged .*rebuild it with"):
        Split.open(manifest)
    file = manifest.with_name("tokens.safetensors")
    ids, documents = tokens_of(6, seed=0)
    save_file({"input_ids": ids.astype(np.int64), "document_id": documents}, file)
    described = {**read_json(manifest, rebuild=""), "tokens_checksum": checksum(file)}
    write_json(manifest, described)
    with pytest.raises(UserError, match=r"input_ids is I64 \[6, 16\], wanted I32"):
        Split.open(manifest)
    write_json(manifest, {"key": "other"})
    with pytest.raises(UserError, match="not a corpus manifest; rebuild it with"):
        Split.open(manifest)
    file.unlink()
    write_json(manifest, described)
    with pytest.raises(UserError, match="the file is missing; rebuild it with"):
        Split.open(manifest)
