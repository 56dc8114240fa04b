"""Activations by token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nullsae.corpus.store import Tokens


def token_ids(corpus: Tokens, position: Tensor) -> Tensor:
    """Return token ids int64 [n] at flat positions int64 [n] of a split."""
    return torch.from_numpy(corpus.input_ids.reshape(-1)[position.numpy()]).long()


class TokenMeans:
    """Mean activation of each token id, summed in batches."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        self.sums = torch.zeros(vocab_size, d_model, dtype=torch.float64)
        self.counts = torch.zeros(vocab_size, dtype=torch.int64)
        """Tokens of each id, int64 [vocab_size]."""

    def add(self, x: Tensor, ids: Tensor) -> None:
        """Add activations [n, d_model] with their token ids int64 [n]."""
        self.sums.index_add_(0, ids, x.double())
        self.counts += torch.bincount(ids, minlength=len(self.counts))

    def means(self) -> Tensor:
        """Return float64 [vocab_size, d_model]; unseen ids get the mean over all tokens."""
        overall = self.sums.sum(dim=0) / self.counts.sum()
        seen = (self.counts > 0)[:, None]
        return torch.where(seen, self.sums / self.counts.clamp_min(1)[:, None], overall)


def fit_token_means(
    batches: Iterable[tuple[Tensor, Tensor]], vocab_size: int, d_model: int
) -> tuple[Tensor, Tensor]:
    """Compute means and counts from activations [n, d_model] and token ids int64 [n]."""
    found = TokenMeans(vocab_size, d_model)
    for x, ids in batches:
        found.add(x, ids)
    return found.means(), found.counts
