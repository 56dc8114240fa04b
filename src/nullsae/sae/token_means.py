"""Activations by the token that they are of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nullsae.corpus.store import Tokens


def token_ids(corpus: Tokens, position: Tensor) -> Tensor:
    """Token ids int64 [n] at flat positions int64 [n] of a split."""
    return torch.from_numpy(corpus.input_ids.reshape(-1)[position.numpy()]).long()


def fit_token_means(
    batches: Iterable[tuple[Tensor, Tensor]], vocab_size: int, d_model: int
) -> tuple[Tensor, Tensor]:
    """Mean activation of each token id, from activations [n, d_model] and token ids int64 [n].

    Returns means float64 [vocab_size, d_model] (ids never seen get the mean over all tokens), and
    the counts int64 [vocab_size].
    """
    sums = torch.zeros(vocab_size, d_model, dtype=torch.float64)
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for x, ids in batches:
        sums.index_add_(0, ids, x.double())
        counts += torch.bincount(ids, minlength=vocab_size)
    overall = sums.sum(dim=0) / counts.sum()
    seen = (counts > 0)[:, None]
    return torch.where(seen, sums / counts.clamp_min(1)[:, None], overall), counts
