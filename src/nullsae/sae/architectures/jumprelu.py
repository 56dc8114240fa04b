"""JumpReLU: a learned threshold per latent (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from __future__ import annotations

import math

from pydantic import PositiveFloat

from nullsae.sae.architectures import base
from nullsae.sae.architectures.batch_topk import batch_top_k
from nullsae.sae.architectures.standard import dense_gradients
from nullsae.sae.later import Autoencoder, Tensor, autoencoder, kernels, torch


class JumpReluSae(base.LimitedSae):
    """A recipe, and how finished SAEs encode: what exceeds a positive threshold per latent."""

    name, position, step_cost = "jumprelu", 4, 7.0
    summary = "learns a threshold per latent, with k as the target"
    coding, own_tensors = True, ("threshold",)

    l0_coefficient: PositiveFloat = 3.0
    """`jumprelu`: weight of (active latents per token / k - 1)^2 relative to the fraction of
    variance unexplained."""
    bandwidth: PositiveFloat = 0.01
    """`jumprelu`: width of the kernel that gives thresholds a gradient, for inputs scaled to a mean
    norm of 1."""
    initial_threshold: PositiveFloat | None = None
    """`jumprelu`: initial threshold of every latent, for inputs scaled to a mean norm of 1; by
    default the one that gives k active latents per token in the first batch."""

    @classmethod
    def training(cls) -> type[base.TrainedSae[JumpReluSae]]:
        return JumpReLU

    @classmethod
    def select(cls, sae: Autoencoder, pre: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.positive(pre.relu().mul_(pre > sae.own["threshold"]))


class JumpReLU(base.TrainedSae[JumpReluSae]):
    """loss = FVU + l0_coefficient * (L0 / k - 1)^2, where L0 is the active latents per token.

    codes = z where z > theta, else 0, for pre-activations z and theta = exp(log_threshold). The
    loss jumps where a z crosses its theta. Its expectation still has a slope by theta, which the
    paper estimates with a kernel K of width e (its equations 11 and 12):

        d code / d theta = -theta / e * K((z - theta) / e),
        d [z > theta] / d theta = -1 / e * K((z - theta) / e),

    K = 1 within half a width of 0. By z, codes have slope 1 where active and L0 has none. The
    penalty on the distance to a target is the paper's, applied to the batch's mean. e is
    `bandwidth` times sqrt(d_model), the mean norm of inputs; a given threshold is scaled likewise.

    Thresholds start at `initial_threshold`, or else at the value that gives the first batch k
    active latents per token, since log_threshold moves at most by the learning rate in a step.
    """

    def __init__(self, recipe: JumpReluSae, k: int, start: Autoencoder) -> None:
        super().__init__(recipe, k, start)
        given = recipe.initial_threshold
        threshold = (given or 1.0) * math.sqrt(self.d_model)
        self.parameters["log_threshold"] = torch.full_like(start.b_enc, math.log(threshold))
        self.buffers["started"] = torch.tensor(given is not None, device=start.b_enc.device)

    def gradients(self, x: Tensor, dead: Tensor | None) -> tuple[base.Gradients, base.Losses]:
        width, target = self.recipe.bandwidth * math.sqrt(self.d_model), self.k
        centred = x - self.b_dec
        pre = torch.addmm(self.b_enc, centred, self.w_enc.t())
        if not self.buffers["started"]:
            kept = batch_top_k(centred, self.w_enc, self.b_enc, target * len(x)).values
            if len(kept):
                self.parameters["log_threshold"].fill_(kept.min().log())
            self.buffers["started"].fill_(True)
        threshold = self.parameters["log_threshold"].exp()
        near = (pre - threshold).abs_() < width / 2
        active = pre > threshold
        codes = pre.mul_(active)
        scale = base.variance(x)
        residual = torch.addmm(self.b_dec, codes, self.w_dec) - x
        out = residual * (2.0 / scale)
        by_code = out @ self.w_dec.t()
        excess = int(active.sum()) / (len(x) * target) - 1.0
        by_l0 = 2.0 * self.recipe.l0_coefficient * excess / (len(x) * target)
        slope = (by_code * near).sum(dim=0) * threshold + near.sum(dim=0, dtype=x.dtype) * by_l0
        gradients = dense_gradients(self, centred, by_code.mul_(active), codes, out)
        gradients["log_threshold"] = slope * threshold / -width
        fvu = float(base.square_sum(residual) / scale)
        penalty = self.recipe.l0_coefficient * excess**2
        return gradients, base.Losses(fvu, 0.0, penalty, active.any(dim=0))

    def autoencoder(self) -> Autoencoder:
        tensors = {**self.parameters, "threshold": self.parameters["log_threshold"].exp()}
        return autoencoder.Autoencoder.of(tensors, "jumprelu", None)
