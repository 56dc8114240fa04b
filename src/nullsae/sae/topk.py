"""TopK SAE (Gao et al. 2024): x ~ W_dec' relu(topk(W_enc (x - b_dec) + b_enc)) + b_dec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.kernels import HitsByLatent, decode, dot_rows, top_k

PARAMETERS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


@dataclass
class TopKSae:
    """Weights of a TopK SAE and what they do to activations.

    Attributes:
        w_enc: encoder rows, [n_latents, d_model].
        b_enc: [n_latents].
        w_dec: decoder rows, [n_latents, d_model], of unit norm.
        b_dec: [d_model], subtracted from the input once and added to the output once.
        k: latents kept per token.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    k: int

    @property
    def n_latents(self) -> int:
        return len(self.b_enc)

    def parameters(self) -> dict[str, Tensor]:
        """The tensors by their names on disk."""
        return dict(zip(PARAMETERS, (self.w_enc, self.b_enc, self.w_dec, self.b_dec), strict=True))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], k: int) -> TopKSae:
        """From tensors by their names on disk."""
        w_enc, b_enc, w_dec, b_dec = (tensors[name] for name in PARAMETERS)
        return cls(w_enc, b_enc, w_dec, b_dec, k)

    def to(self, device: torch.device) -> TopKSae:
        """The same SAE on another device."""
        return TopKSae.of({name: t.to(device) for name, t in self.parameters().items()}, self.k)

    def encode(self, x: Tensor, token_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Activations [tokens, d_model] to codes: values and int64 indices, both [tokens, k].

        A value of 0 means that the latent did not fire.
        """
        return top_k(F.linear(x - self.b_dec, self.w_enc, self.b_enc), self.k)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """Codes to reconstructions [tokens, d_model]."""
        return decode(values, indices, self.w_dec) + self.b_dec

    def scaled(self, factor: float) -> TopKSae:
        """The SAE for inputs that are `factor` times as large, with codes to match.

        Encoder and decoder rows are homogeneous; only the biases carry the input's scale.
        """
        return TopKSae(self.w_enc, self.b_enc * factor, self.w_dec, self.b_dec * factor, k=self.k)


@dataclass(frozen=True)
class Losses:
    """Parts of the training loss, and which latents fired."""

    fvu: float
    auxk: float
    fired: Tensor
    """bool [n_latents]"""


def gradients(
    sae: TopKSae, x: Tensor, *, dead: Tensor, auxk_k: int, auxk_coefficient: float
) -> tuple[dict[str, Tensor], Losses]:
    """Loss and exact gradients of one batch, through the selected latents only.

    loss = FVU + auxk_coefficient * s * AuxK, where
    FVU = sum |x - x^|^2 / sum |x - mean(x)|^2 over the batch, and AuxK is the same ratio for the
    residual e = x - x^ (held constant) as modelled by the `auxk_k` most active dead latents
    without b_dec; s = min(1, dead latents / auxk_k) (Gao et al. 2024, appendix A.2; the variance
    of x is the denominator as in EleutherAI's sparsify).

    Args:
        sae: the weights.
        x: [tokens, d_model], at least two different rows.
        dead: bool [n_latents].
        auxk_k: dead latents per token that may model the residual.
        auxk_coefficient: weight of AuxK; 0 turns it off.

    Returns:
        Gradients by parameter name, and the loss parts.
    """
    centred = x - sae.b_dec
    pre = torch.addmm(sae.b_enc, centred, sae.w_enc.t())
    values, indices = top_k(pre, sae.k)
    variance = (x - x.mean(dim=0)).square().sum()

    residual = sae.decode(values, indices) - x
    fvu = residual.square().sum() / variance
    out = residual * (2.0 / variance)
    hits = HitsByLatent(indices, sae.n_latents)
    code_gradient = dot_rows(out, indices, sae.w_dec) * (values > 0)
    gradient = {
        "encoder.weight": hits.row_gradient(code_gradient, centred),
        "encoder.bias": hits.bias_gradient(code_gradient),
        "W_dec": hits.row_gradient(values, out),
        "b_dec": out.sum(dim=0) - decode(code_gradient, indices, sae.w_enc).sum(dim=0),
    }
    fired = torch.zeros(sae.n_latents, dtype=torch.bool, device=x.device)
    fired[indices[values > 0]] = True

    n_dead = int(dead.sum())
    auxk = 0.0
    if auxk_coefficient and n_dead:
        auxk = _add_auxk(
            gradient, sae, pre, centred, -residual, variance, dead, auxk_k, auxk_coefficient
        )
    return gradient, Losses(fvu=float(fvu), auxk=auxk, fired=fired)


def _add_auxk(
    gradient: dict[str, Tensor],
    sae: TopKSae,
    pre: Tensor,
    centred: Tensor,
    target: Tensor,
    variance: Tensor,
    dead: Tensor,
    auxk_k: int,
    coefficient: float,
) -> float:
    """Add AuxK's gradients (encoder, decoder and b_dec) to `gradient`; returns its value."""
    dead_latents = dead.nonzero().squeeze(1)
    k = min(auxk_k, len(dead_latents))
    values, local = top_k(pre[:, dead_latents], k)
    indices = dead_latents[local]
    weight = coefficient * min(1.0, len(dead_latents) / auxk_k)
    error = decode(values, indices, sae.w_dec) - target
    value = error.square().sum() / variance
    out = error * (2.0 * weight / variance)
    hits = HitsByLatent(indices, sae.n_latents)
    code_gradient = dot_rows(out, indices, sae.w_dec) * (values > 0)
    gradient["encoder.weight"] += hits.row_gradient(code_gradient, centred)
    gradient["encoder.bias"] += hits.bias_gradient(code_gradient)
    gradient["W_dec"] += hits.row_gradient(values, out)
    gradient["b_dec"] -= decode(code_gradient, indices, sae.w_enc).sum(dim=0)
    return float(value)


def initialize(x: Tensor, *, n_latents: int, k: int, generator: torch.Generator) -> TopKSae:
    """A fresh SAE: random unit decoder rows, tied encoder, b_dec the geometric median.

    The encoder is the decoder times the one factor that reconstructs the sample best: with zero
    encoder bias the selected latents do not depend on that factor and the reconstruction is
    linear in it, so it is <x - b_dec, r> / <r, r> for the unscaled reconstruction r.

    Args:
        x: [tokens, d_model] float32, a sample of activations.
        n_latents: width of the dictionary.
        k: latents kept per token.
        generator: CPU generator of the decoder rows.
    """
    rows = torch.randn(n_latents, x.shape[1], generator=generator, dtype=torch.float32)
    w_dec = F.normalize(rows, dim=1).to(x.device)
    b_dec = geometric_median(x)
    centred = x - b_dec
    values, indices = top_k(centred @ w_dec.t(), k)
    guess = decode(values, indices, w_dec)
    scale = (centred * guess).sum() / guess.square().sum().clamp_min(1e-12)
    b_enc = torch.zeros(n_latents, device=x.device)
    return TopKSae(w_dec * scale, b_enc, w_dec.clone(), b_dec, k=k)


def geometric_median(x: Tensor, *, iterations: int = 50) -> Tensor:
    """The point with the least sum of distances to the rows of x [n, d], by Weiszfeld's steps.

    A step from a point that is one of the rows follows Vardi and Zhang (2000), equation 2.6: the
    plain step divides by a distance of 0 there.
    """
    point: Tensor = x.mean(dim=0)
    for _ in range(iterations):
        distance = (x - point).norm(dim=1)
        away = distance > 1e-6 * (1.0 + point.norm())
        if not bool(away.any()):
            return point
        weights = torch.where(away, 1.0 / distance, 0.0)
        target: Tensor = (x * weights[:, None]).sum(dim=0) / weights.sum()
        pull = (target - point).norm() * weights.sum()
        stay = ((~away).sum() / pull).clamp(max=1.0) if not bool(away.all()) else 0.0
        moved = target + (point - target) * stay
        if bool((moved - point).norm() <= 1e-6 * (1.0 + point.norm())):
            return moved
        point = moved
    return point
