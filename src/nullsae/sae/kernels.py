"""Products with k-sparse codes that never touch the zeros.

A code is a pair `values` [tokens, k] and `indices` int64 [tokens, k]. Every function runs in a
fixed order of additions, so results do not depend on the number of threads, and none builds a
[tokens, k, d] tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries per row, rectified: (values, indices), both [tokens, k]."""
    values, indices = torch.topk(pre, k, dim=-1, sorted=False)
    return values.relu(), indices


def decode(values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Sum of `rows[indices]` weighted by `values`: [tokens, d]."""
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")


def dot_rows(dense: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Inner products of each token's vector with its k rows: [tokens, k].

    Args:
        dense: [tokens, d].
        indices: int64 [tokens, k] into `rows`.
        rows: [n_latents, d].
    """
    # This is the derivative of `decode` by its weights, which PyTorch computes without
    # gathering the rows.
    weights = torch.zeros(indices.shape, dtype=rows.dtype, device=rows.device, requires_grad=True)
    with torch.enable_grad():
        decoded = decode(weights, indices, rows.detach())
        (products,) = torch.autograd.grad(decoded, weights, dense)
    return products


class HitsByLatent:
    """The tokens x k hits of a batch, sorted by latent, for gradients of row matrices."""

    def __init__(self, indices: Tensor, n_latents: int) -> None:
        """Sort once.

        Args:
            indices: int64 [tokens, k].
            n_latents: number of rows of the matrices.
        """
        flat = indices.flatten()
        # Stable: additions happen in token order on every device.
        self.order = torch.argsort(flat, stable=True)
        self.tokens = torch.div(self.order, indices.shape[1], rounding_mode="floor")
        self.counts = torch.bincount(flat, minlength=n_latents)
        self.offsets = self.counts.cumsum(0) - self.counts

    def row_gradient(self, weights: Tensor, dense: Tensor) -> Tensor:
        """Sum over hits of weight x the token's vector, per latent: [n_latents, d].

        Args:
            weights: [tokens, k], one per hit.
            dense: [tokens, d].
        """
        return F.embedding_bag(
            self.tokens,
            dense,
            self.offsets,
            per_sample_weights=weights.flatten()[self.order],
            mode="sum",
        )

    def bias_gradient(self, weights: Tensor) -> Tensor:
        """Sum over hits of the weight, per latent: [n_latents]."""
        return self.row_gradient(weights, weights.new_ones(len(weights), 1)).squeeze(1)
