"""An architecture: a ReLU SAE that also pays for the squares of its codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from nullsae.core.registry import lazy
from nullsae.sae.architectures.base import Losses, TrainedSae, square_sum, variance
from nullsae.sae.architectures.standard import PayingSae, Standard, dense_gradients

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nullsae.sae.architectures.base import Gradients
else:
    torch = lazy("torch")


class ElasticSae(PayingSae):
    """The recipe; a finished SAE encodes as `standard` does."""

    name = "elastic"

    ridge_coefficient: NonNegativeFloat = 0.1
    """Weight of half the sum of the squared codes, for inputs of mean norm sqrt(d_model)."""

    @classmethod
    def training(cls) -> type[TrainedSae[ElasticSae]]:
        return Elastic


class Elastic(Standard, TrainedSae[ElasticSae]):
    """loss = (sum |x - x^|^2 + a sqrt(d_model) sum of codes + b/2 sum of codes^2) / variance."""

    def gradients(self, x: Tensor, dead: Tensor) -> tuple[Gradients, Losses]:
        centred = x - self.b_dec
        codes = torch.addmm(self.b_enc, centred, self.w_enc.t()).relu_()
        scale = variance(x)
        residual = torch.addmm(self.b_dec, codes, self.w_dec) - x
        out = residual * (2.0 / scale)
        price = self.recipe.l1_coefficient * math.sqrt(self.d_model)
        ridge = self.recipe.ridge_coefficient
        slopes = (out @ self.w_dec.t()) + (price + ridge * codes) / scale
        gradients = dense_gradients(self, centred, slopes * (codes > 0), codes, out)
        penalty = (price * codes.sum() + ridge / 2 * square_sum(codes)) / scale
        fvu = float(square_sum(residual) / scale)
        return gradients, Losses(fvu, 0.0, float(penalty), (codes > 0).any(dim=0))
