"""The tokenizer of a corpus: trained here or taken from elsewhere, saved as a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nullsae.config.corpora import GgufTokenizer, PretrainedTokenizer, TrainedTokenizer
from nullsae.config.model_files import GGUF_PACKAGES, find_gguf, is_local
from nullsae.core.errors import UserError, first_line
from nullsae.corpus.hub import check_repository

EOS = "<|endoftext|>"


@dataclass(frozen=True)
class Encoder:
    """A tokenizer ready to encode documents."""

    tokenizer: PreTrainedTokenizerFast
    eos_token_id: int
    vocab_size: int
    """Largest token id plus one."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids int32 [n_tokens] of each text: no special tokens added, none recognized."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    @cached_property
    def _backend(self) -> Tokenizer:
        """A copy for encoding, made once: to parse a large vocabulary takes longer than a batch."""
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        # A text that spells out "<|endoftext|>" must not end a document.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return backend


def train_tokenizer(texts: Iterable[str], config: TrainedTokenizer) -> Encoder:
    """Train a byte-level BPE. The same texts in any order give the same tokenizer.

    Its `vocab_size` is reached if the texts have enough distinct pairs.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[EOS],
        show_progress=False,
        # All 256 bytes, seen or not: any text can be encoded without an unknown token.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    return _encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS))


def load_tokenizer(
    config: PretrainedTokenizer | GgufTokenizer, *, where: str = "tokenizer"
) -> Encoder:
    """Load a tokenizer from the hub, a folder or a GGUF file.

    Raises:
        UserError: it cannot be loaded, is not a fast one, or has no EOS token.
    """
    if isinstance(config, GgufTokenizer):
        file = find_gguf(config, where=where)
        if find_spec("gguf") is None:
            needed = f"gguf (pip install {GGUF_PACKAGES})"
            raise UserError(f"{where}: reading a GGUF file needs {needed}")
        key, name = where, str(file)
        path, keys = str(file.parent), {"gguf_file": file.name}
    else:
        key, name = f"{where}.path", config.path
        path = str(Path(config.path).expanduser()) if is_local(config.path) else config.path
        keys = {"revision": config.revision or "main"}
        check_repository(path, kind="model", revision=config.revision, where=key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **keys)
    except Exception as error:  # whatever a foreign repository makes the loader raise
        raise UserError(
            f"{key}: no tokenizer could be loaded from {name!r}: {first_line(error)}"
        ) from None
    lacking = ""
    if not tokenizer.is_fast:
        lacking = f"{name!r} has no fast tokenizer (tokenizer.json)"
    elif tokenizer.eos_token_id is None:
        lacking = f"the tokenizer {name!r} has no EOS token, which separates documents"
    if lacking:
        raise UserError(f"{key}: {lacking}; choose one that has")
    return _encoder(tokenizer)


def _encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    # Not len(): ids may have gaps, and `vocab_size` of transformers leaves added tokens out.
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return Encoder(tokenizer, tokenizer.eos_token_id, vocab_size)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a transformers tokenizer folder; an old one is replaced whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokenizer.") as temporary:
        made = Path(temporary) / folder.name
        tokenizer.save_pretrained(made)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)
