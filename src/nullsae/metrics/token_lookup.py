"""The token-lookup floor: how much variance the token's identity alone explains, without an SAE."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


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
