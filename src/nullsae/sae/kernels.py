"""Products with sparse codes that never touch the zeros.

A code is a set of hits: which latents are active at which token, and how much. Every function runs
in a fixed order of additions, so results do not depend on the number of threads, and none builds
a [hits, d] tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Hits:
    """Active latents of a batch, token by token; a token may have any number of them."""

    values: Tensor
    """[n_hits]."""
    latents: Tensor
    """int64 [n_hits]."""
    offsets: Tensor
    """int64 [tokens]: where each token's hits start."""

    @classmethod
    def of(cls, values: Tensor, indices: Tensor) -> Hits:
        """From k hits per token: values and int64 indices, both [tokens, k]."""
        offsets = torch.arange(0, values.numel(), values.shape[1], device=values.device)
        return cls(values.flatten(), indices.flatten(), offsets)

    def tokens(self) -> Tensor:
        """The token of each hit, int64 [n_hits]."""
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([len(self.latents)])])
        tokens = torch.arange(len(self.offsets), device=self.offsets.device)
        return tokens.repeat_interleave(ends - self.offsets)

    def decode(self, rows: Tensor) -> Tensor:
        """Sum of each token's `rows[latents]` weighted by `values`: [tokens, d]."""
        return F.embedding_bag(
            self.latents, rows, self.offsets, per_sample_weights=self.values, mode="sum"
        )

    def dot_rows(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Inner products of each token's vector with its latents' rows: [n_hits].

        Args:
            dense: [tokens, d].
            rows: [n_latents, d].
        """
        # This is the derivative of `decode` by its weights, which PyTorch computes without
        # gathering the rows.
        weights = torch.zeros_like(self.values, requires_grad=True)
        with torch.enable_grad():
            decoded = Hits(weights, self.latents, self.offsets).decode(rows.detach())
            (products,) = torch.autograd.grad(decoded, weights, dense)
        return products


class HitsByLatent:
    """The hits of a batch, sorted by latent, for gradients of row matrices."""

    def __init__(self, hits: Hits, n_latents: int) -> None:
        """Sort once; `n_latents` is the number of rows of the matrices."""
        # Stable: additions happen in token order on every device.
        self.order = torch.argsort(hits.latents, stable=True)
        self.tokens = hits.tokens()[self.order]
        counts = torch.bincount(hits.latents, minlength=n_latents)
        self.offsets = counts.cumsum(0) - counts

    def row_gradient(self, weights: Tensor, dense: Tensor) -> Tensor:
        """Sum over hits of weight x the token's vector, per latent: [n_latents, d].

        Args:
            weights: [n_hits], in the order of the hits.
            dense: [tokens, d].
        """
        return F.embedding_bag(
            self.tokens,
            dense,
            self.offsets,
            per_sample_weights=weights[self.order],
            mode="sum",
        )

    def bias_gradient(self, weights: Tensor, n_tokens: int) -> Tensor:
        """Sum over hits of the weight, per latent: [n_latents]."""
        return self.row_gradient(weights, weights.new_ones(n_tokens, 1)).squeeze(1)


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries per row, rectified: (values, indices), both [tokens, k]."""
    values, indices = torch.topk(pre, k, dim=-1, sorted=False)
    return values.relu(), indices


def decode(values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Sum of `rows[indices]` weighted by `values`, both [tokens, k]: [tokens, d]."""
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")
