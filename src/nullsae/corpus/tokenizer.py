"""The tokenizer of a corpus: trained here or loaded, and saved as a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from nullsae.config.corpora import GgufTokenizer, PretrainedTokenizer, TrainedTokenizer
from nullsae.config.model_files import GGUF_PACKAGES, find_gguf, is_local
from nullsae.core.errors import UserError, first_line
from nullsae.core.files import atomic_folder
from nullsae.core.folders import check_files, expanded
from nullsae.corpus.hub import check_repository

EOS = "<|endoftext|>"
# Any text: special tokens around it are added around every text.
PROBE = "the text"


# More token ids than any tokenizer has; tables have a row for each, used or not.
MOST_TOKENS = 2**24
# Characters that are encoded at once.
BATCH_CHARACTERS = 2**20
# Characters in a piece of a longer text, and shared by two neighbouring pieces.
PIECE_CHARACTERS, OVERLAP_CHARACTERS = 2**18, 2**12
# Matching tokens required on both sides of the place where two pieces are joined.
SAME_TOKENS = 16


@dataclass(frozen=True)
class Encoder:
    """A tokenizer ready to encode documents."""

    tokenizer: PreTrainedTokenizerFast
    vocab_size: int
    """Largest token id plus one."""
    asks_for_bos: bool = False
    """Whether its `tokenizer_config.json` says `add_bos_token: true`, which transformers since 5.0
    leaves to the post-processor of `tokenizer.json`."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return token ids int32 [n_tokens] of each text; special tokens are not added or parsed.

        Long texts are encoded separately, because a character takes about 100 bytes of memory.
        """
        found: list[NDArray[np.int32]] = []
        waiting: list[str] = []
        for text in texts:
            if sum(map(len, waiting)) + len(text) > BATCH_CHARACTERS:
                found += self._encode_batch(waiting)
                waiting = []
            if len(text) > BATCH_CHARACTERS:
                found.append(self._encode_long(text))
            else:
                waiting.append(text)
        return [*found, *self._encode_batch(waiting)]

    def _encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        with _in_a_line():
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _encode_long(self, text: str) -> NDArray[np.int32]:
        """Encode piece by piece. Two pieces are joined where they overlap with the same tokens, so
        that the ids equal those of the whole text; if they never agree, it is encoded as a whole.
        """
        parts: list[NDArray[np.int32]] = []
        ids, starts = self._piece(text, 0)
        at = PIECE_CHARACTERS - OVERLAP_CHARACTERS
        while at + OVERLAP_CHARACTERS < len(text):
            next_ids, next_starts = self._piece(text, at)
            meeting = _meeting(ids, starts, next_ids, next_starts)
            if meeting is None:
                return self._encode_batch([text])[0]
            parts.append(ids[: meeting[0]])
            ids, starts = next_ids[meeting[1] :], next_starts[meeting[1] :]
            at += PIECE_CHARACTERS - OVERLAP_CHARACTERS
        return np.concatenate([*parts, ids])

    def _piece(self, text: str, at: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return ids of the piece from a character on, and where in the text each starts."""
        with _in_a_line():
            found = self._backend.encode(text[at : at + PIECE_CHARACTERS], add_special_tokens=False)
        starts = np.asarray(found.offsets, dtype=np.int64).reshape(-1, 2)[:, 0] + at
        return np.asarray(found.ids, dtype=np.int32), starts

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own EOS, which ends a turn in some chat models."""
        found: int | None = self.tokenizer.eos_token_id
        return found

    @cached_property
    def added_before(self) -> tuple[int, ...]:
        """Ids that the tokenizer's post-processor, of any kind, puts before a text."""
        text = self._any_text()
        with _in_a_line():
            plain, whole = (
                self._backend.encode(text, add_special_tokens=added).ids for added in (False, True)
            )
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return tuple(whole[:start])
        return ()

    def _any_text(self) -> str:
        """Return a text for which the tokenizer has a token: one of its own if it lacks English."""
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        for text in (PROBE, *sorted(vocabulary, key=vocabulary.__getitem__)):
            with suppress(Exception):  # the library raises no class of its own
                if self._backend.encode(text, add_special_tokens=False).ids:
                    return text
        return PROBE

    def share_without_token(self, texts: Sequence[str]) -> float:
        """Return the share of the texts' characters that no token, or only an unknown one, has.

        White space does not count, because many tokenizers drop it.
        """
        known = {self.tokenizer.unk_token, getattr(self._backend.model, "unk_token", None)}
        unknown = {self.special_tokens.get(name) for name in known if name} - {None}
        n_characters = sum(not character.isspace() for text in texts for character in text)
        # Where characters are left out, the library counts the others as if they were adjacent.
        left_out = str.maketrans(dict.fromkeys(self._left_out(set("".join(texts)))))
        kept = [text.translate(left_out) for text in texts]
        n_covered = 0
        with _in_a_line():
            encodings = self._backend.encode_batch(kept, add_special_tokens=False)
        for text, found in zip(kept, encodings, strict=True):
            covers = np.zeros(len(text), dtype=np.bool_)
            for index, (start, end) in zip(found.ids, found.offsets, strict=True):
                covers[start:end] |= index not in unknown
            n_covered += sum(not text[at].isspace() for at in np.flatnonzero(covers).tolist())
        return 1 - n_covered / max(1, n_characters)

    def _left_out(self, characters: set[str]) -> list[str]:
        """Return those that BPE leaves out, for want of a token for unknown ones."""
        model, ordered = self._backend.model, sorted(characters)
        if not isinstance(model, models.BPE) or model.unk_token is not None:
            return []
        encodings = self._backend.encode_batch_fast(ordered, add_special_tokens=False)
        return [c for c, found in zip(ordered, encodings, strict=True) if not found.ids]

    @property
    def bos_token_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text, or else its BOS; empty if it has neither."""
        own = self.tokenizer.bos_token_id
        return self.added_before or (() if own is None else (own,))

    @property
    def wants_bos(self) -> bool:
        """Whether the tokenizer by default starts texts with BOS."""
        return bool(self.added_before or (self.asks_for_bos and self.bos_token_ids))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The ids of the special tokens by name, in the order of the ids."""
        added = sorted(self._backend.get_added_tokens_decoder().items())
        return {token.content: index for index, token in added if token.special}

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by name, or of a text that is one token; None for others."""
        found: int | None = self._backend.token_to_id(token)
        if found is None and len(ids := self.encode([token])[0]) == 1:
            unknown = self.tokenizer.unk_token_id
            found = int(ids[0]) if ids[0] != unknown else None
        return found

    @cached_property
    def _backend(self) -> Tokenizer:
        """A copy for encoding, made once, as parsing a large vocabulary is slower than a batch."""
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        # A text that spells out "<|endoftext|>" must not end a document.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return backend


@contextmanager
def _in_a_line() -> Iterator[None]:
    """Say in a line that a tokenizer cannot encode a text, which the library tells only then."""
    try:
        yield
    except Exception as error:  # the library raises no class of its own
        raise UserError(
            f"config: corpora.*.tokenizer: it cannot encode the text ({first_line(error)}); choose "
            f"one that has a token for anything, as a byte-level one has"
        ) from None


def _meeting(
    ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    next_ids: NDArray[np.int32],
    next_starts: NDArray[np.int64],
) -> tuple[int, int] | None:
    """Find a place in two pieces with the same tokens before and after; None if there is none.

    It is the one nearest to the middle of the overlap, because at its ends a piece has other
    tokens.
    """
    first = int(np.searchsorted(starts, next_starts[0] if len(next_starts) else 0))
    middle = (int(starts[-1]) + int(next_starts[0])) // 2 if len(starts) and len(next_starts) else 0
    width = 2 * SAME_TOKENS
    candidates = range(first + SAME_TOKENS, len(ids) - SAME_TOKENS + 1)
    for i in sorted(candidates, key=lambda i: abs(int(starts[min(i, len(ids) - 1)]) - middle)):
        place = starts[i - SAME_TOKENS : i + SAME_TOKENS]
        j = int(np.searchsorted(next_starts, place[0]))
        if (
            len(place) == width
            and np.array_equal(place, next_starts[j : j + width])
            and np.array_equal(ids[i - SAME_TOKENS : i + SAME_TOKENS], next_ids[j : j + width])
        ):
            return i, j + SAME_TOKENS
    return None


def train_tokenizer(texts: Iterable[str], config: TrainedTokenizer) -> Encoder:
    """Train a byte-level BPE. The same texts in any order give the same tokenizer.

    It has `vocab_size` tokens if the texts have enough distinct pairs.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[EOS],
        show_progress=False,
        # All 256 bytes, seen or not, so that any text can be encoded without an unknown token.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    return encoder_of(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS))


def load_tokenizer(
    config: PretrainedTokenizer | GgufTokenizer, *, where: str = "tokenizer"
) -> Encoder:
    """Load a tokenizer from the hub, a folder or a GGUF file.

    Raises:
        UserError: it cannot be loaded, or is not a fast one.
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
        path = str(expanded(config.path)) if is_local(config.path) else config.path
        keys = {"revision": config.revision or "main"}
        check_repository(path, kind="model", revision=config.revision, where=key)
        if Path(path).is_dir():
            check_files(Path(path), where=key)
    asks = False
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **keys)
        if isinstance(config, PretrainedTokenizer):
            tokenizer = _as_in_its_file(tokenizer, path, keys)
            asks = get_tokenizer_config(path, **keys).get("add_bos_token") is True
    except Exception as error:  # anything that a foreign repository makes the loader raise
        raise UserError(
            f"{key}: no tokenizer could be loaded from {name!r}: {first_line(error)}"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{key}: {name!r} has no fast tokenizer (tokenizer.json); choose one that has"
        )
    if tokenizer.get_vocab().keys() <= set(tokenizer.get_added_vocab()):
        # transformers makes this from a config.json alone; it encodes every text as empty.
        raise UserError(
            f"{key}: {name!r} holds no tokenizer, only a config; save the model's tokenizer there"
        )
    encoder = encoder_of(tokenizer, asks_for_bos=asks)
    if encoder.vocab_size > MOST_TOKENS:
        raise UserError(
            f"{key}: {name!r} has the token id {encoder.vocab_size - 1}; ids must be below "
            f"{MOST_TOKENS:,}, because tables have a row for each"
        )
    return encoder


def _as_in_its_file(
    tokenizer: PreTrainedTokenizerFast, path: str, keys: dict[str, str]
) -> PreTrainedTokenizerFast:
    """Return the tokenizer that splits text as its `tokenizer.json` says, if it has that file.

    Since version 5, the classes of transformers take the vocabulary from there, but split text by
    rules of their own. Models were trained with those of the file.
    """
    file = cached_file(
        *(path, "tokenizer.json"),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **keys,
    )
    if file is None or not tokenizer.is_fast:
        return tokenizer
    own = Tokenizer.from_file(file)
    if _rules(own) == _rules(tokenizer.backend_tokenizer):
        return tokenizer
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(path, **keys)
    found.backend_tokenizer.post_processor = own.post_processor
    # Those that the config lacks and the class has, as for GPT-2.
    for name, token in tokenizer.special_tokens_map.items():
        lacks = getattr(found, name, token) is None
        if lacks and isinstance(token, str) and own.token_to_id(token) is not None:
            setattr(found, name, token)
    return found


def _rules(backend: Tokenizer) -> list[Any]:
    """Return what determines the tokens of a text, except added tokens."""
    of_offsets = "trim_offsets"
    found = json.loads(
        backend.to_str(),
        # What is absent, null or false in one version's file is another of these in the next.
        object_hook=lambda keys: {k: v for k, v in keys.items() if v and k != of_offsets},
    )
    return [found.get(name) for name in ("normalizer", "pre_tokenizer", "model")]


def encoder_of(tokenizer: PreTrainedTokenizerFast, *, asks_for_bos: bool = False) -> Encoder:
    """Wrap a transformers tokenizer for encoding documents; see `Encoder.asks_for_bos`."""
    # Not len(): ids may have gaps, and `vocab_size` in transformers excludes added tokens.
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return Encoder(tokenizer, vocab_size, asks_for_bos)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a transformers tokenizer folder, replacing an old one entirely."""
    with atomic_folder(folder) as made:
        tokenizer.save_pretrained(made)
