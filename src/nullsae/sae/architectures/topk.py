"""TopK: the k largest pre-activations of each token (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from nullsae.sae.architectures.base import (
    MULTI,
    MULTI_WEIGHT,
    Gradients,
    Losses,
    TrainedSae,
    add_auxk,
    add_fvu,
    fired,
    variance,
)
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.kernels import Hits, encode_top_k, top_k


class TopK(TrainedSae):
    """loss = FVU + weighted AuxK, gradients through the selected latents only.

    FVU = sum |x - x^|^2 / sum |x - mean(x)|^2 over the batch, as in EleutherAI's sparsify. With
    `multi_topk` the loss also has 1/8 of the FVU that 4k latents per token reach (all latents, if
    they are fewer); `Losses.fvu`, the residual of AuxK and what counts as fired are those of k.
    """

    DENSE_TENSORS: ClassVar[int] = 0

    def gradients(self, x: Tensor, dead: Tensor) -> tuple[Gradients, Losses]:
        centred = x - self.b_dec
        multi = self.recipe.multi_topk
        most = min(MULTI * self.k, self.n_latents) if multi else self.k
        values, indices = encode_top_k(centred, self.w_enc, self.b_enc, most)
        wide = Hits.of(values, indices)
        if multi:
            values, places = top_k(values, self.k)
            indices = indices.gather(1, places)
        hits = Hits.of(values, indices)
        scale = variance(x)
        gradients: Gradients = {}
        fvu, error = add_fvu(gradients, self, x, centred, hits, scale)
        if multi:
            add_fvu(gradients, self, x, centred, wide, scale, MULTI_WEIGHT)
        auxk = add_auxk(gradients, self, None, centred, error, scale, dead)
        return gradients, Losses(fvu, auxk, 0.0, fired(hits, self.n_latents))

    def autoencoder(self) -> Autoencoder:
        return Autoencoder.of(self.parameters, "topk", self.k)
