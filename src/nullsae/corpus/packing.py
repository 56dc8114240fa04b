"""Documents joined by EOS and cut into contexts of one length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]


class Packer:
    """Collects the documents of one split, in order, up to the number of tokens wanted."""

    def __init__(self, n_contexts: int | None, context_tokens: int, eos_token_id: int) -> None:
        """Start empty; with `n_contexts` None everything is kept."""
        self.n_contexts, self.context_tokens = n_contexts, context_tokens
        self._eos = np.array([eos_token_id], dtype=np.int32)
        self._pieces: list[IntArray] = []
        self._lengths: list[int] = []
        self.n_tokens = 0
        """Tokens collected, EOS included."""

    @property
    def full(self) -> bool:
        """Whether another document would be dropped whole."""
        return (
            self.n_contexts is not None and self.n_tokens >= self.n_contexts * self.context_tokens
        )

    def add(self, ids: IntArray) -> None:
        """Add one document's token ids, [n_tokens]; its EOS is added here."""
        self._pieces += [ids, self._eos]
        self._lengths.append(len(ids) + 1)
        self.n_tokens += len(ids) + 1

    def contexts(self) -> tuple[IntArray, IntArray]:
        """The first `n_contexts` contexts, or all whole ones; what is left over is dropped.

        Returns:
            input_ids and document_id, both int32 [n_contexts, context_tokens]. An EOS has the
            document_id of the document that it ends.

        Raises:
            ValueError: fewer tokens than `n_contexts` need.
        """
        n_contexts = self.n_contexts
        if n_contexts is None:
            n_contexts = self.n_tokens // self.context_tokens
        shape = (n_contexts, self.context_tokens)
        size = n_contexts * self.context_tokens
        if self.n_tokens < size:
            raise ValueError(f"{self.n_tokens} tokens, {size} needed")
        tokens = np.concatenate(self._pieces)[:size].reshape(shape)
        documents = np.repeat(np.arange(len(self._lengths), dtype=np.int32), self._lengths)
        return tokens, documents[:size].reshape(shape)
