"""The tokens of a split, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.corpus.store import TOKENS_FILE, Tokens, load_tokens

# Lags of the autocorrelation: 1 to this number of tokens.
LAGS = 15
# Tokens processed together when a split is read from end to end.
PIECE_TOKENS = 2**18


@dataclass(frozen=True)
class Split:
    """One split of a corpus.

    `ids` and `document` are memory-mapped, so the system can reclaim their memory.
    """

    ids: np.ndarray
    """int32 [n_tokens]: token ids, context after context."""
    document: np.ndarray
    """int32 [n_tokens]: the document of each token."""
    context_tokens: int
    separator_token_id: int | None
    """The id that ends each document, if the manifest records it."""
    manifest: Path
    n_bos: int = 0
    """Number of BOS tokens at the start of each context."""
    bos_token_ids: Sequence[int] = ()
    """Ids that are BOS at any position."""
    vocab_size: int | None = None
    """One more than the tokenizer's largest id, if the manifest records it."""

    @classmethod
    def open(cls, manifest: Path) -> Split:
        """Map the tokens next to a manifest, and verify them.

        Raises a `UserError` with the command that rebuilds a file if it is missing, damaged or not
        part of a corpus.
        """
        return cls.of(load_tokens(manifest), manifest)

    @classmethod
    def of(cls, tokens: Tokens, manifest: Path) -> Split:
        """Wrap the tokens of a split that were already read; messages name the path.

        Raises a `UserError` if the tokens of a document are not contiguous.
        """
        ids, document = tokens.input_ids, tokens.document_id
        ends = tokens.manifest.get("separator_token_id")
        bos = tokens.bos_token_ids
        # If one token is both, as in GPT-2, only the one at the start of a context is BOS.
        if tokens.manifest.get("eos_token_id") in bos:
            bos = []
        split = cls(
            *(ids.reshape(-1), document.reshape(-1), ids.shape[1], ends, manifest),
            *(tokens.n_bos, bos, tokens.manifest.get("vocab_size")),
        )
        if len(np.unique(split.document[split.bounds[:-1]])) != len(split.bounds) - 1:
            raise UserError(
                f"{manifest.with_name(TOKENS_FILE)}: the tokens of a document are not contiguous; "
                f"rebuild it with: {rebuild_command(manifest)}"
            )
        return split

    def is_bos(self, position: np.ndarray) -> np.ndarray:
        """Return whether there is a BOS at each position: bool [n]."""
        prepended = position % self.context_tokens < self.n_bos
        return prepended | np.isin(self.ids[position], self.bos_token_ids)

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
    def frequency(self) -> np.ndarray:
        """Share of each id among all tokens: float32 [n_types]."""
        counts = np.zeros(self.n_types, dtype=np.int64)
        for piece in self.pieces():
            counts += np.bincount(self.ids[piece], minlength=self.n_types)
        return (counts / self.n_tokens).astype(np.float32)

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
        """Pairs of tokens 1 to `LAGS` apart, in one context and document: int64 [LAGS]."""
        counted = np.zeros(LAGS, dtype=np.int64)
        for piece in self.pieces():
            rows = self.document[piece].reshape(-1, self.context_tokens)
            for lag in range(1, min(LAGS + 1, self.context_tokens)):
                counted[lag - 1] += int((rows[:, lag:] == rows[:, :-lag]).sum())
        return counted

    def pieces(self) -> Iterator[slice]:
        """Yield the split in pieces of whole contexts."""
        step = max(1, PIECE_TOKENS // self.context_tokens) * self.context_tokens
        for start in range(0, self.n_tokens, step):
            yield slice(start, min(start + step, self.n_tokens))

    def stretch(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the stretch within the context and document of each position.

        First position and end (one after the last), both int64 [n].
        """
        position = position.astype(np.int64)
        place = np.searchsorted(self.bounds, position, side="right") - 1
        context = position // self.context_tokens * self.context_tokens
        first = np.maximum(self.bounds[place], context)
        end = np.minimum(self.bounds[place + 1], context + self.context_tokens)
        return first, end
