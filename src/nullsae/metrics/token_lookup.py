"""The token-lookup floor: how much variance the token's identity alone explains, without an SAE."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def fit_token_means(
    batches: Iterable[tuple[Tensor, Tensor]], vocab_size: int, d_model: int
) -> tuple[Tensor, Tensor]:
    """Mean activation of each token id.

    Args:
        batches: pairs of activations [n, d_model] and token ids int64 [n].
        vocab_size: number of token ids.
        d_model: width.

    Returns:
        Means float64 [vocab_size, d_model] (ids never seen get the mean over all tokens), and
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


def token_lookup_r2(
    means: Tensor, batches: Iterable[tuple[Tensor, Tensor]], split_mean: Tensor
) -> float:
    """1 - sum |x - means[token]|^2 / sum |x - split_mean|^2, over another split than the fit's.

    Args:
        means: float64 [vocab_size, d_model].
        batches: pairs of activations [n, d_model] and token ids int64 [n].
        split_mean: float64 [d_model], mean of the split that `batches` runs over.
    """
    error, deviation = 0.0, 0.0
    for x, ids in batches:
        exact = x.double()
        error += float((exact - means[ids]).square().sum())
        deviation += float((exact - split_mean).square().sum())
    return 1.0 - error / deviation
