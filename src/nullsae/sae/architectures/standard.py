"""ReLU SAEs that pay for the sum of their codes (Bricken et al. 2023, Cunningham et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

from pydantic import PositiveFloat

from nullsae.config.saes import Sae
from nullsae.sae.architectures.base import Gradients, Losses, TrainedSae, square_sum, variance
from nullsae.sae.later import Autoencoder, Tensor, autoencoder, kernels, torch


class PayingSae(Sae):
    """Keys of an architecture that pays for its activity."""

    l1_coefficient: PositiveFloat = 0.2
    """`gated`, `standard`: weight of the sum of the codes beside the squared error, for inputs
    scaled to a mean norm of 1."""


class StandardSae(PayingSae):
    """A recipe, and how finished SAEs encode: rectified."""

    name, position, step_cost, coding = "standard", 6, 4.6, True
    summary = "pays for activity by `l1_coefficient`"

    @classmethod
    def training(cls) -> type[TrainedSae[StandardSae]]:
        return Standard

    @classmethod
    def select(cls, sae: Autoencoder, pre: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.positive(pre.relu())


class Standard(TrainedSae[StandardSae]):
    """loss = (sum |x - x^|^2 + l1_coefficient * sqrt(d_model) * sum of codes) / variance.

    The first part is FVU. sqrt(d_model) is the mean norm of inputs: the coefficient is the one for
    inputs of norm 1. Decoder rows have unit norm, so that the second is not evaded by small
    codes with large rows. Every latent may be active: products are dense.
    """

    LOW_PRECISION = "tf32"

    def gradients(self, x: Tensor, dead: Tensor) -> tuple[Gradients, Losses]:
        centred = x - self.b_dec
        codes = torch.addmm(self.b_enc, centred, self.w_enc.t()).relu_()
        active = codes > 0
        scale = variance(x)
        weight = self.recipe.l1_coefficient * math.sqrt(self.d_model) / scale
        residual = torch.addmm(self.b_dec, codes, self.w_dec) - x
        out = residual * (2.0 / scale)
        by_pre = (out @ self.w_dec.t()).add_(weight).mul_(active)
        gradients = dense_gradients(self, centred, by_pre, codes, out)
        fvu, penalty = float(square_sum(residual) / scale), float(weight * codes.sum(dim=1).sum())
        return gradients, Losses(fvu, 0.0, penalty, active.any(dim=0))

    def autoencoder(self) -> Autoencoder:
        return autoencoder.Autoencoder.of(self.parameters, "standard", None)


def dense_gradients(
    sae: TrainedSae[Any], centred: Tensor, by_pre: Tensor, codes: Tensor, out: Tensor
) -> Gradients:
    """Derivatives by encoder, decoder and biases, W_dec left out where it is frozen.

    `centred` is x - b_dec, `by_pre` the loss' derivative by the pre-activations, `out` that by the
    reconstructions; `by_pre` and codes are [tokens, n_latents], the others [tokens, d_model].
    """
    bias = by_pre.sum(dim=0)
    gradients = {
        "encoder.weight": by_pre.t() @ centred,
        "encoder.bias": bias,
        "b_dec": out.sum(dim=0) - kernels.weighted_rows(bias, sae.w_enc),
    }
    if "W_dec" not in sae.frozen:
        gradients["W_dec"] = codes.t() @ out
    return gradients
