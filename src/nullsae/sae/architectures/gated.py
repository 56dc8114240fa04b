"""Gated SAEs: one encoder decides which latents are active, another by how much.

Rajamanoharan et al. 2024, arXiv 2404.16014.
"""

from __future__ import annotations

import math

from nullsae.sae.architectures.base import Gradients, Losses, TrainedSae, square_sum, variance
from nullsae.sae.architectures.standard import Paying, PayingSae, dense_gradients
from nullsae.sae.later import Autoencoder, Tensor, autoencoder, torch


class GatedSae(PayingSae):
    """A recipe; finished SAEs are `jumprelu`."""

    name, position, step_cost = "gated", 5, 9.0
    summary = "pays for activity by `l1_coefficient`, with a gate separate from the codes"

    @classmethod
    def training(cls) -> type[TrainedSae[GatedSae]]:
        return Gated


class Gated(Paying[GatedSae]):
    """Two encoders with the same directions W.

    With u = W (x - b_dec),

        gate = u + b_gate,  magnitude = exp(r_mag) u + b_mag,
        codes = relu(magnitude) where gate > 0, else 0,
        loss = (sum |x - x^|^2 + l1_coefficient * sqrt(d_model) * sum of relu(gate)
                + sum |x - x^'|^2) / variance.

    The first part is FVU. x^' reconstructs from relu(gate) by a decoder that this term treats as
    constant. Only this term and the penalty train the gate, so the penalty does not shrink the
    codes. W is `encoder.weight`, b_mag is `encoder.bias`; r_mag and b_gate keep their names.
    """

    LOW_PRECISION = "tf32"

    def __init__(self, recipe: GatedSae, k: int, start: Autoencoder) -> None:
        super().__init__(recipe, k, start)
        self.parameters["r_mag"] = torch.zeros_like(start.b_enc)
        self.parameters["b_gate"] = start.b_enc.clone()

    def gradients(self, x: Tensor, dead: Tensor | None) -> tuple[Gradients, Losses]:
        stretch = self.parameters["r_mag"].exp()
        scale = variance(x)
        centred = x - self.b_dec
        shared = centred @ self.w_enc.t()
        gate = (shared + self.parameters["b_gate"]).relu_()
        codes = torch.addcmul(self.b_enc, shared, stretch).relu_().mul_(gate > 0)
        weight = self.weight(codes > 0) * math.sqrt(self.d_model) / scale

        residual = torch.addmm(self.b_dec, codes, self.w_dec) - x
        out = residual * (2.0 / scale)
        by_magnitude = (out @ self.w_dec.t()).mul_(codes > 0)
        by_gate = (torch.addmm(self.b_dec, gate, self.w_dec) - x).mul_(2.0 / scale)
        by_gate = (by_gate @ self.w_dec.t()).add_(weight).mul_(gate > 0)

        by_shared = by_magnitude * stretch + by_gate
        gradients = dense_gradients(self, centred, by_shared, codes, out)
        gradients["encoder.bias"] = by_magnitude.sum(dim=0)
        gradients["r_mag"] = (by_magnitude * shared).sum(dim=0) * stretch
        gradients["b_gate"] = by_gate.sum(dim=0)
        fvu, penalty = float(square_sum(residual) / scale), float(weight * gate.sum(dim=1).sum())
        return gradients, Losses(fvu, 0.0, penalty, (codes > 0).any(dim=0))

    def autoencoder(self) -> Autoencoder:
        """Fold the gate, keeping the codes: gate > 0 is magnitude > b_mag - exp(r_mag) b_gate."""
        stretch = self.parameters["r_mag"].exp()
        threshold = (self.b_enc - stretch * self.parameters["b_gate"]).relu()
        folded = {"encoder.weight": self.w_enc * stretch[:, None], "threshold": threshold}
        return autoencoder.Autoencoder.of({**self.parameters, **folded}, "jumprelu", None)
