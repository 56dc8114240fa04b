"""The tokens of a split as collection reads them: mapped from the disk, not loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nullsae.corpus.store import TOKENS_FILE
from nullsae.errors import UserError
from nullsae.files import read_json, rebuild_command, verify

# Lags of the autocorrelation: 1 to so many tokens.
LAGS = 15
# Tokens that are looked at together when a split is read from end to end.
PIECE_TOKENS = 2**18


@dataclass(frozen=True)
class Split:
    """One split of a corpus. `ids` and `document` are maps of its file: they take no memory that
    the system could not take back.
    """

    ids: np.ndarray
    """int32 [n_tokens]: token ids, contexts in a row."""
    document: np.ndarray
    """int32 [n_tokens]: the document of each token."""
    context_tokens: int
    eos_token_id: int | None
    """The id that ends each document, if the manifest says so."""
    manifest: Path

    @classmethod
    def open(cls, manifest: Path) -> Split:
        """Map the tokens that lie beside a manifest, verified against it.

        Raises:
            UserError: a file is missing, damaged or not what a corpus consists of; names it and
                the command that rebuilds it.
        """
        rebuild = rebuild_command(manifest)
        described = read_json(manifest, rebuild=rebuild)
        if not isinstance(described, dict) or "tokens_checksum" not in described:
            raise UserError(f"{manifest}: not a corpus manifest; rebuild it with: {rebuild}")
        file = manifest.with_name(TOKENS_FILE)
        verify(file, described["tokens_checksum"], rebuild=rebuild)
        ids, document = (_mapped(file, name) for name in ("input_ids", "document_id"))
        eos = described.get("eos_token_id")
        split = cls(ids.reshape(-1), document.reshape(-1), ids.shape[1], eos, manifest)
        if len(np.unique(split.document[split.bounds[:-1]])) != len(split.bounds) - 1:
            raise UserError(
                f"{file}: the tokens of a document are not in a row; rebuild it with: {rebuild}"
            )
        return split

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def n_documents(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def n_types(self) -> int:
        """One more than the largest token id that occurs."""
        return 1 + max((int(self.ids[piece].max()) for piece in self.pieces()), default=-1)

    @cached_property
    def bounds(self) -> np.ndarray:
        """Where documents start, and the end of the last: int64 [n_documents + 1]."""
        found = []
        for piece in self.pieces():
            before = self.document[max(0, piece.start - 1) : piece.stop]
            found.append(np.flatnonzero(np.diff(before)) + max(1, piece.start))
        return np.concatenate([[0], *found, [self.n_tokens]]).astype(np.int64)

    @cached_property
    def n_pairs(self) -> np.ndarray:
        """Pairs of tokens at a distance of 1 to `LAGS`, both in one context and one document:
        int64 [LAGS].
        """
        counted = np.zeros(LAGS, dtype=np.int64)
        for piece in self.pieces():
            rows = self.document[piece].reshape(-1, self.context_tokens)
            for lag in range(1, min(LAGS + 1, self.context_tokens)):
                counted[lag - 1] += int((rows[:, lag:] == rows[:, :-lag]).sum())
        return counted

    def pieces(self) -> Iterator[slice]:
        """The split in pieces of whole contexts."""
        step = max(1, PIECE_TOKENS // self.context_tokens) * self.context_tokens
        for start in range(0, self.n_tokens, step):
            yield slice(start, min(start + step, self.n_tokens))

    def stretch(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First position and end (one after the last) of what lies in the same context and the
        same document as each of the given positions, both int64 [n].
        """
        position = position.astype(np.int64)
        place = np.searchsorted(self.bounds, position, side="right") - 1
        context = position // self.context_tokens * self.context_tokens
        first = np.maximum(self.bounds[place], context)
        end = np.minimum(self.bounds[place + 1], context + self.context_tokens)
        return first, end


def _mapped(file: Path, name: str) -> np.ndarray:
    """An int32 tensor of a safetensors file as a map of its bytes."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(size)).get(name)
    if entry is None:
        raise UserError(f"{file}: holds no {name}; it is not the tokens of a corpus")
    start, _ = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] != "I32" or len(shape) != 2 or 0 in shape:
        raise UserError(f"{file}: {name} is {entry['dtype']} {list(shape)}, wanted I32 [n, tokens]")
    # A plain array: slices of maps cost ten times as much.
    return np.asarray(np.memmap(file, np.int32, "r", offset=8 + size + start, shape=shape))
