"""TopK: the k largest pre-activations of each token (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

import torch
from torch import Tensor

from nullsae.sae.architectures.base import (
    Gradients,
    Losses,
    TrainedSae,
    add_auxk,
    add_gradients,
    fired,
    variance,
)
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.kernels import Hits, top_k


class TopK(TrainedSae):
    """loss = FVU + weighted AuxK, gradients through the selected latents only.

    FVU = sum |x - x^|^2 / sum |x - mean(x)|^2 over the batch, as in EleutherAI's sparsify.
    """

    def gradients(self, x: Tensor, dead: Tensor) -> tuple[Gradients, Losses]:
        centred = x - self.b_dec
        pre = torch.addmm(self.b_enc, centred, self.w_enc.t())
        hits = Hits.of(*top_k(pre, self.k))
        scale = variance(x)
        residual = hits.decode(self.w_dec) + self.b_dec - x
        out = residual * (2.0 / scale)
        gradients = {"b_dec": out.sum(dim=0)}
        add_gradients(gradients, self, centred, hits, out)
        auxk = add_auxk(gradients, self, pre, centred, -residual, scale, dead)
        fvu = float(residual.square().sum() / scale)
        return gradients, Losses(fvu, auxk, 0.0, fired(hits, self.n_latents))

    def autoencoder(self) -> Autoencoder:
        return Autoencoder.of(self.parameters, "topk", self.k)
