"""Sparsity of codes and explained variance: norms are computed per sample, then averaged."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.toy.training import Standardized, Weights, decode, encode

CHUNK_ENTRIES = 1 << 24
"""Entries of the codes that are kept at a time."""
MEASURES = ("l0", "l1", "l1_over_sqrt_l2", "hoyer")


def norms(v: Tensor) -> Tensor:
    """Return nonzero entries, sum of absolute values and Euclidean norm of each row of v [n, k].

    Returns:
        Float64 [n, 3], on the CPU.
    """
    exact = v.double()
    parts = ((exact != 0).sum(dim=1).double(), exact.abs().sum(dim=1), exact.norm(dim=1))
    return torch.stack(parts, dim=1).cpu()


def sparsity(of_samples: Tensor, n_entries: int) -> dict[str, Any]:
    """Compute sparsity measures of each sample, then average them.

    Hoyer's (2004) is (sqrt(k) - L1 / L2) / (sqrt(k) - 1): 1 for a single entry, 0 for k equal
    ones, independent of scale. It is undefined if nothing is active, and averaged over the other
    samples. L1 / sqrt(L2) grows with the square root of the scale; it is 0 if nothing is active.

    Args:
        of_samples: what `norms` returns, float64 [n, 3].
        n_entries: k, the length of the vectors, at least 2.

    Returns:
        The means `l0`, `l1`, `l1_over_sqrt_l2` and `hoyer` (None if no sample is active), and
        `active_share`, the share of samples with any nonzero entry.
    """
    l0, l1, l2 = of_samples.unbind(dim=1)
    active = l2 > 0
    root = n_entries**0.5
    hoyer = (root - l1[active] / l2[active]) / (root - 1)
    ratio = torch.zeros_like(l1)
    ratio[active] = l1[active] / l2[active].sqrt()
    return {
        "l0": float(l0.mean()),
        "l1": float(l1.mean()),
        "l1_over_sqrt_l2": float(ratio.mean()),
        "hoyer": float(hoyer.mean()) if len(hoyer) else None,
        "active_share": float(active.double().mean()),
    }


def explained_variance(
    x: Tensor, output: Tensor, *, about: Literal["mean", "scalar"] = "mean"
) -> float | None:
    """Compute 1 - sum |x - output|^2 / sum |x - mean of x|^2 over all rows of x [n, d], in float64.

    With the `scalar` mean of all entries, as in the paper's toy models, what all rows share counts
    as variance, so an SAE that learns only this can explain much. None without variance.
    """
    exact = x.double()
    mean = exact.mean(dim=0) if about == "mean" else exact.mean()
    total = float((exact - mean).square().sum())
    return 1.0 - float((exact - output.double()).square().sum()) / total if total > 0 else None


def mmcs(directions: Tensor, decoder: Tensor) -> float:
    """Average, over directions [m, d], the largest cosine with a decoder row [n_latents, d]."""
    cosines = F.normalize(directions.double(), dim=1) @ F.normalize(decoder.double(), dim=1).T
    return float(cosines.max(dim=1).values.mean())


@torch.no_grad()
def evaluate(weights: Weights, scaled: Standardized, x: Tensor) -> dict[str, Any]:
    """Measure one SAE on held-out vectors: standardized, and x as they came, float32 [n, d].

    Returns `mse` (mean over entries), both explained variances, the `sparsity` of the codes, and
    `alive_share`, the share of latents that fired on any sample.
    """
    n_latents = weights.encoder.shape[2]
    rows = max(1, CHUNK_ENTRIES // n_latents)
    fired = torch.zeros(n_latents, dtype=torch.bool, device=x.device)
    outputs, of_samples = [], []
    for start in range(0, len(x), rows):
        some = scaled[slice(start, start + rows)]
        codes = encode(weights, some)
        outputs.append(decode(weights, codes, some)[0])
        of_samples.append(norms(codes[0]))
        fired |= (codes[0] > 0).any(dim=0)
    output = torch.cat(outputs)
    return {
        "mse": float((x.double() - output.double()).square().mean()),
        "explained_variance": explained_variance(x, output),
        "explained_variance_about_scalar": explained_variance(x, output, about="scalar"),
        **sparsity(torch.cat(of_samples), n_latents),
        "alive_share": float(fired.double().mean()),
    }
