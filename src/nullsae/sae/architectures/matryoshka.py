"""Matryoshka BatchTopK: prefixes of the dictionary reconstruct on their own.

Bussmann et al. 2025, arXiv 2503.17547.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PositiveFloat, field_validator

from nullsae.sae.architectures.base import Gradients, Losses, TrainedSae, square_sum, variance
from nullsae.sae.architectures.batch_topk import BatchTopK, BatchTopKSae
from nullsae.sae.later import Autoencoder, Hits, Tensor, kernels, torch


class MatryoshkaSae(BatchTopKSae):
    """A recipe; finished SAEs are `jumprelu`."""

    name, position, step_cost = "matryoshka", 3, 1.5
    summary = "does so too, with nested prefixes of the dictionary"

    prefix_shares: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        *(0.0625, 0.125, 0.25, 0.5, 1.0),
    )
    """`matryoshka`: shares of the dictionary that reconstruct on their own, rising, the last 1;
    rounded up to whole latents."""

    @field_validator("prefix_shares")
    @classmethod
    def prefixes_are_nested(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)) or shares[-1] != 1.0:
            raise ValueError(f"{list(shares)} must rise, and end at 1")
        return shares

    @classmethod
    def training(cls) -> type[TrainedSae[MatryoshkaSae]]:
        return Matryoshka


class Matryoshka(BatchTopK[MatryoshkaSae]):
    """loss = mean over prefixes of their FVU + weighted AuxK on the residual of all latents.

    A prefix is the first `prefix_shares` of the latents, rounded up. Its reconstruction is b_dec
    plus the contributions of its own active latents. Activity is that of BatchTopK over all
    latents. `Losses.fvu` is that of all latents.

    The latents between two prefixes are a ring. With x_r the sum of a ring's hits, the residual of
    prefix p is R_p = b_dec + sum_(r <= p) x_r - x, so the loss' derivative by x_r is
    2 / (prefixes * variance) * sum_(p >= r) R_p. A ring's hits are therefore stored as separate
    rows, rings times tokens of them. These and 2 tensors [prefixes * tokens, d_model] are the
    memory needed beyond BatchTopK.
    """

    def __init__(self, recipe: MatryoshkaSae, k: int, start: Autoencoder) -> None:
        super().__init__(recipe, k, start)
        ends = [math.ceil(share * start.n_latents) for share in recipe.prefix_shares]
        self.ends = torch.tensor(ends, device=start.b_enc.device)

    def gradients(self, x: Tensor, dead: Tensor | None) -> tuple[Gradients, Losses]:
        n_prefixes = len(self.ends)
        centred, hits = self._kept(x)
        rings = by_ring(hits, self.ends)
        scale = variance(x)
        residuals = rings.decode(self.w_dec).view(n_prefixes, *x.shape).cumsum_(dim=0)
        residuals += self.b_dec - x
        fvu = float(square_sum(residuals[-1]) / scale)
        target = -residuals[-1]
        out = residuals.mul_(2.0 / (n_prefixes * scale))
        for ring in reversed(range(n_prefixes - 1)):
            out[ring] += out[ring + 1]
        gradients = {"b_dec": out[0].sum(dim=0)}
        repeated = centred.expand(n_prefixes, *x.shape).reshape(-1, self.d_model)
        self.add_gradients(gradients, repeated, rings, out.view(-1, self.d_model))
        auxk = self.add_auxk(gradients, centred, target, scale, dead)
        return gradients, Losses(fvu, auxk, 0.0, self.fired(hits))


def by_ring(hits: Hits, ends: Tensor) -> Hits:
    """Return hits as rows (ring, token), ring by ring, from hits token by token.

    `ends` int64 [rings] rise: where each ring of latents ends.
    """
    row = torch.bucketize(hits.latents, ends, right=True) * len(hits.offsets) + hits.tokens
    order = row.argsort(stable=True)
    counts = torch.bincount(row, minlength=len(ends) * len(hits.offsets))
    return kernels.Hits(hits.values[order], hits.latents[order], counts.cumsum(0) - counts)
