"""TopK: the k largest pre-activations of each token (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import ClassVar

from nullsae.config.compute import Precise
from nullsae.sae.architectures.auxk import AuxKSae, RevivingSae
from nullsae.sae.architectures.base import Gradients, Losses, TrainedSae, variance
from nullsae.sae.later import Autoencoder, Hits, Tensor, autoencoder, kernels

# Multi-TopK's second loss: this many times k latents, and this weight (Gao et al. 2024, 4.2).
MULTI, MULTI_WEIGHT = 4, 1.0 / 8.0


class TopKSae(AuxKSae):
    """A recipe, and how finished SAEs encode: the k largest, rectified."""

    name, position = "topk", 1
    summary = "keeps the k largest pre-activations of each token"
    keeps_k = coding = has_k = True

    multi_topk: bool = False
    """Add the loss of 4k latents per token, with weight 1/8, so that more latents learn."""

    @classmethod
    def training(cls) -> type[TrainedSae[TopKSae]]:
        return TopK

    @classmethod
    def select(cls, sae: Autoencoder, pre: Tensor) -> tuple[Tensor, Tensor]:
        assert sae.k is not None
        return kernels.top_k(pre, sae.k)


class TopK(RevivingSae[TopKSae]):
    """loss = FVU + weighted AuxK, gradients through the selected latents only.

    FVU = sum |x - x^|^2 / sum |x - mean(x)|^2 over the batch, as in EleutherAI's sparsify. With
    `multi_topk` the loss also includes 1/8 of the FVU of 4k latents per token (or of all latents,
    if fewer). `Losses.fvu`, AuxK's residual and what counts as fired use k latents.
    """

    DENSE_TENSORS: ClassVar[int] = 0
    LOW_PRECISION = "choice"

    @classmethod
    def hits(cls, recipe: TopKSae, k: int, n_latents: int) -> int:
        return k + (min(MULTI * k, n_latents) if recipe.multi_topk else 0)

    def gradients(self, x: Tensor, dead: Tensor | None) -> tuple[Gradients, Losses]:
        centred = x - self.b_dec
        multi = self.recipe.multi_topk
        most = min(MULTI * self.k, self.n_latents) if multi else self.k
        weights = self.w_enc, self.b_enc
        values, indices = kernels.encode_top_k(centred, *weights, most, self.precision)
        wide = kernels.Hits.of(values, indices)
        if multi:
            values, places = kernels.top_k(values, self.k)
            indices = indices.gather(1, places)
        hits = kernels.Hits.of(values, indices)
        scale = variance(x)
        gradients: Gradients = {}
        fvu, error = self.add_fvu(gradients, x, centred, hits, scale)
        if multi:
            self.add_fvu(gradients, x, centred, wide, scale, MULTI_WEIGHT)
        auxk = self.add_auxk(gradients, centred, error, scale, dead)
        return gradients, Losses(fvu, auxk, 0.0, self.fired(hits))

    def chosen(self, centred: Tensor, precision: Precise) -> Hits:
        weights = self.w_enc, self.b_enc
        return kernels.Hits.of(*kernels.encode_top_k(centred, *weights, self.k, precision))

    def autoencoder(self) -> Autoencoder:
        return autoencoder.Autoencoder.of(self.parameters, "topk", self.k)
