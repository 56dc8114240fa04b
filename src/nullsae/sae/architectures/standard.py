"""ReLU SAEs with a penalty on the sum of codes (Bricken et al. 2023, Cunningham et al. 2023)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self, TypeVar

from pydantic import PositiveFloat

from nullsae.config.saes import Sae
from nullsae.sae.architectures.base import Gradients, Losses, TrainedSae, square_sum, variance
from nullsae.sae.later import Autoencoder, Tensor, autoencoder, kernels, torch


class PayingSae(Sae):
    """Keys of an architecture with a penalty on activity."""

    l1_coefficient: PositiveFloat = 0.2
    """`gated`, `standard`: weight of the sum of the codes relative to the squared error, for inputs
    scaled to a mean norm of 1."""
    target_l0: PositiveFloat | None = None
    """`gated`, `standard`: adjust that weight during training, starting at `l1_coefficient`, so
    that this many latents are active per token."""

    def with_l0(self, l0: float) -> Self:
        return self.model_copy(update={"target_l0": l0})


P = TypeVar("P", bound=PayingSae)


class Paying(TrainedSae[P]):
    """Training with a penalty on the sum of codes, whose weight is fixed or adjusted.

    With a `target_l0` the weight of each step is w r, where r is the batch's L0 over the target,
    within a factor of e. This is the proportional part of a controller of log L0; w grows by r^GAIN
    with each step, its integral part. The penalty thus ends at the weight that the target needs at
    the end of training. A search with shorter trainings would miss it, because L0 falls during
    training.
    """

    GAIN: ClassVar[float] = 0.03

    def __init__(self, recipe: P, k: int, start: Autoencoder) -> None:
        super().__init__(recipe, k, start)
        weight = torch.tensor(recipe.l1_coefficient, dtype=torch.float64)
        self.buffers["l1_coefficient"] = weight

    def weight(self, active: Tensor) -> float:
        """Return the penalty's weight for inputs of norm 1, given codes [tokens, n_latents]."""
        weight = self.buffers["l1_coefficient"]
        if self.recipe.target_l0 is None:
            return float(weight)
        share = int(active.sum()) / len(active) / self.recipe.target_l0
        ratio = min(math.e, max(1 / math.e, share))
        weight.mul_(ratio**self.GAIN)
        return float(weight) * ratio


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


class Standard(Paying[StandardSae]):
    """loss = (sum |x - x^|^2 + l1_coefficient * sqrt(d_model) * sum of codes) / variance.

    The first part is FVU. sqrt(d_model) is the mean norm of inputs, so the coefficient applies to
    inputs of norm 1. Decoder rows have unit norm, so small codes with large rows cannot evade the
    second part. Every latent may be active, so products are dense.
    """

    LOW_PRECISION = "tf32"

    def gradients(self, x: Tensor, dead: Tensor | None) -> tuple[Gradients, Losses]:
        centred = x - self.b_dec
        codes = torch.addmm(self.b_enc, centred, self.w_enc.t()).relu_()
        active = codes > 0
        scale = variance(x)
        weight = self.weight(active) * math.sqrt(self.d_model) / scale
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
    """Return derivatives by encoder, decoder and biases, without W_dec if it is frozen.

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
