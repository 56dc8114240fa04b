"""How a TopK SAE is trained (Gao et al. 2024): its start, its loss and the exact gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.kernels import HitsByLatent, decode, dot_rows, top_k


@dataclass(frozen=True)
class Losses:
    """Parts of the training loss, and which latents fired."""

    fvu: float
    auxk: float
    fired: Tensor
    """bool [n_latents]"""


def gradients(
    sae: Autoencoder, x: Tensor, *, dead: Tensor, auxk_k: int, auxk_coefficient: float
) -> tuple[dict[str, Tensor], Losses]:
    """Loss and exact gradients of one batch, through the selected latents only.

    loss = FVU + auxk_coefficient * s * AuxK, where
    FVU = sum |x - x^|^2 / sum |x - mean(x)|^2 over the batch, and AuxK is the same ratio for the
    residual e = x - x^ (held constant) as modelled by the `auxk_k` most active dead latents
    without b_dec; s = min(1, dead latents / auxk_k) (Gao et al. 2024, appendix A.2; the variance
    of x is the denominator as in EleutherAI's sparsify).

    Args:
        sae: the weights, of architecture `topk`.
        x: [tokens, d_model], at least two different rows.
        dead: bool [n_latents].
        auxk_k: dead latents per token that may model the residual.
        auxk_coefficient: weight of AuxK; 0 turns it off.

    Returns:
        Gradients by parameter name, and the loss parts.
    """
    assert sae.k is not None
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
    sae: Autoencoder,
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


def initialize(x: Tensor, *, n_latents: int, k: int, generator: torch.Generator) -> Autoencoder:
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
    return Autoencoder("topk", w_dec * scale, b_enc, w_dec.clone(), b_dec, k=k)


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
