"""The start of an SAE's training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.kernels import decode, encode_top_k


def initialize(x: Tensor, *, n_latents: int, k: int, generator: torch.Generator) -> Autoencoder:
    """Make a fresh SAE: random unit decoder rows, tied encoder, b_dec the geometric median.

    The encoder is the decoder times the factor that reconstructs the sample best. With zero encoder
    bias, the selected latents do not depend on that factor and the reconstruction is linear in it,
    so it is <x - b_dec, r> / <r, r> for the unscaled reconstruction r. x is float32
    [tokens, d_model], a sample of activations; the CPU generator draws the decoder rows.
    """
    rows = torch.randn(n_latents, x.shape[1], generator=generator, dtype=torch.float32)
    w_dec = F.normalize(rows, dim=1).to(x.device)
    b_dec = geometric_median(x)
    centred = x - b_dec
    b_enc = torch.zeros(n_latents, device=x.device)
    values, indices = encode_top_k(centred, w_dec, b_enc, k)
    guess = decode(values, indices, w_dec)
    scale = (centred * guess).sum() / guess.square().sum().clamp_min(1e-12)
    return Autoencoder("topk", w_dec * scale, b_enc, w_dec.clone(), b_dec, k=k)


def geometric_median(x: Tensor, *, iterations: int = 50) -> Tensor:
    """Find the point with the least sum of distances to rows of x [n, d], by Weiszfeld's steps.

    A step from a point that is one of the rows follows Vardi and Zhang (2000), equation 2.6,
    because the plain step divides by a distance of 0 there.
    """
    point: Tensor = x.mean(dim=0)
    for _ in range(iterations):
        distance = (x - point).norm(dim=1)
        away = distance > 1e-6 * (1.0 + point.norm())
        if not bool(away.any()):
            return point
        weights = torch.where(away, 1.0 / distance, 0.0)
        target: Tensor = weights @ x / weights.sum()
        pull = (target - point).norm() * weights.sum()
        stay = ((~away).sum() / pull).clamp(max=1.0) if not bool(away.all()) else 0.0
        moved = target + (point - target) * stay
        if bool((moved - point).norm() <= 1e-6 * (1.0 + point.norm())):
            return moved
        point = moved
    return point
