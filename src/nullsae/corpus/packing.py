"""Packs the documents of one split into contexts of one length, on disk from the first token."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nullsae.core.files import atomic_path, room_for
from nullsae.core.tensor_files import header
from nullsae.corpus.boundaries import Boundaries

IntArray = NDArray[np.int32]

# Tokens that are buffered before they are written, and tokens that are copied together.
BUFFER_TOKENS = 2**20


class Packed(NamedTuple):
    """How much of a split is packed."""

    n_text: int = 0
    """Tokens of documents and separators, without BOS."""
    n_documents: int = 0


class Packer:
    """Joins documents of one split, in order, and cuts them into contexts of one length.

    The tokens are in two files with the prefix `files`, 4 bytes per token and 8 per document, until
    they are written as contexts.
    """

    def __init__(
        self,
        n_contexts: int | None,
        context_tokens: int,
        bounds: Boundaries,
        files: Path | None = None,
    ) -> None:
        """Start empty.

        Args:
            n_contexts: how many are wanted; None for all.
            context_tokens: their length, including BOS.
            bounds: of contexts and documents.
            files: prefix of its files' names; None to count only.
        """
        self.n_contexts, self.context_tokens = n_contexts, context_tokens
        self._before = np.array(bounds.before_context, dtype=np.int32)
        ends = [] if bounds.separator_token_id is None else [bounds.separator_token_id]
        self._after = np.array(ends, dtype=np.int32)
        self._room = context_tokens - len(self._before)
        self._files = files
        self._held: list[IntArray] = []
        self._ends: list[int] = []
        self._n_held = 0
        self.packed = Packed()

    @property
    def n_tokens(self) -> int:
        """Tokens in the contexts of all documents so far, including a last short one."""
        n_text = self.packed.n_text
        return n_text + -(-n_text // self._room) * len(self._before)

    @property
    def full(self) -> bool:
        """Whether another document would be dropped entirely."""
        return self.n_contexts is not None and self.packed.n_text >= self.n_contexts * self._room

    def add(self, ids: IntArray) -> None:
        """Add one document's token ids, [n_tokens]; the separator is added here.

        An empty document without a separator is skipped and gets no index.
        """
        if not (n := len(ids) + len(self._after)):
            return
        n_text, n_documents = self.packed
        self.packed = Packed(n_text + n, n_documents + 1)
        if self._files is None:
            return
        self._held += [ids, self._after]
        self._ends.append(self.packed.n_text)
        self._n_held += n
        if self._n_held >= BUFFER_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered; until then, a run after a kill cannot find it."""
        if self._held:
            ids = np.concatenate(self._held).astype("<i4", copy=False)
            _append(self._file("ids"), ids.data)
            _append(self._file("ends"), np.array(self._ends, dtype="<i8").data)
        self._held, self._ends, self._n_held = [], [], 0

    def restore(self, packed: Packed) -> bool:
        """Resume from what an earlier run had flushed; return whether its files are complete."""
        sizes = {self._file("ids"): 4 * packed.n_text, self._file("ends"): 8 * packed.n_documents}
        for file, size in sizes.items():
            if (file.stat().st_size if file.is_file() else 0) < size:
                return False
        for file, size in sizes.items():
            if file.is_file():
                os.truncate(file, size)
        self.packed = packed
        return True

    def shape(self) -> tuple[int, int]:
        """Return the number of contexts and their length; leftover tokens are dropped.

        Raises:
            ValueError: there are too few tokens for the wanted contexts.
        """
        whole = self.packed.n_text // self._room
        n_contexts = whole if self.n_contexts is None else self.n_contexts
        if n_contexts > whole:
            raise ValueError(f"{self.packed.n_text} tokens, {n_contexts * self._room} needed")
        return n_contexts, self.context_tokens

    @property
    def last_document(self) -> int:
        """Index of the document of the last token of the last context."""
        ends = np.memmap(self._file("ends"), dtype="<i8", mode="r")
        return int(np.searchsorted(ends, self.shape()[0] * self._room - 1, side="right"))

    def write(self, path: Path) -> None:
        """Write `input_ids` and `document_id`, both int32 [n_contexts, context_tokens].

        A separator has the document_id of the document that it ends, BOS that of the next token.
        The bytes equal those of safetensors' own writer. Raises what `shape` raises.
        """
        shape = self.shape()
        tensors = [(name, "I32", shape) for name in ("document_id", "input_ids")]
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            stream.write(header(tensors))
            for rows in self._documents(shape[0]):
                before = np.repeat(rows[:, :1], len(self._before), 1)
                stream.write(np.hstack([before, rows]).tobytes())
            for rows in self._ids(shape[0]):
                before = np.broadcast_to(self._before, (len(rows), len(self._before)))
                stream.write(np.hstack([before, rows]).tobytes())

    def _pieces(self, n_contexts: int) -> Iterator[range]:
        """Yield contexts that are copied together."""
        step = max(1, BUFFER_TOKENS // self.context_tokens)
        for start in range(0, n_contexts, step):
            yield range(start, min(start + step, n_contexts))

    def _documents(self, n_contexts: int) -> Iterator[IntArray]:
        """Yield the documents of the text in contexts, int32 [n, room]."""
        ends = np.memmap(self._file("ends"), dtype="<i8", mode="r")
        for piece in self._pieces(n_contexts):
            first, stop = piece.start * self._room, piece.stop * self._room
            low, high = np.searchsorted(ends, [first, stop - 1], side="right")
            inner = ends[low:high].clip(first, stop)
            lengths = np.diff(np.concatenate([[first], inner, [stop]]))
            found = np.repeat(np.arange(low, high + 1, dtype="<i4"), lengths)
            yield found.reshape(-1, self._room)

    def _ids(self, n_contexts: int) -> Iterator[IntArray]:
        """Yield the token ids of the text in contexts, int32 [n, room]."""
        with open(self._file("ids"), "rb") as stream:
            for piece in self._pieces(n_contexts):
                found = np.fromfile(stream, dtype="<i4", count=len(piece) * self._room)
                yield found.reshape(-1, self._room)

    def _file(self, kind: str) -> Path:
        assert self._files is not None
        return self._files.with_name(f"{self._files.name}.{kind}")


def _append(file: Path, data: memoryview) -> None:
    with room_for(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab") as stream:
            stream.write(data)
