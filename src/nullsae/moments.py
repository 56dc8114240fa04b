"""Mean, covariance and health of activations, from one pass of exact sums."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Streaming float64 moments of vectors; how they are batched changes nothing but rounding.

    Sums are taken about the first vector, so that a mean far from zero costs no digits.
    Memory: d_model^2 x 8 bytes.
    """

    def __init__(self, d_model: int) -> None:
        self.n = 0
        self.origin = torch.zeros(d_model, dtype=torch.float64)
        self.sum = torch.zeros(d_model, dtype=torch.float64)
        self.products = torch.zeros(d_model, d_model, dtype=torch.float64)
        self.norms = 0.0

    def add(self, x: Tensor) -> None:
        """Add vectors [n, d_model] of any floating dtype and device."""
        exact = x.detach().to("cpu", torch.float64)
        if self.n == 0 and len(exact):
            self.origin = exact[0].clone()
        self.norms += float(exact.norm(dim=1).sum())
        centred = exact - self.origin
        self.sum += centred.sum(dim=0)
        self.products.addmm_(centred.t(), centred)
        self.n += len(exact)

    def mean(self) -> Tensor:
        """Float64 [d_model]."""
        return self.origin + self.sum / self.n

    def covariance(self) -> Tensor:
        """Float64 [d_model, d_model], with n in the denominator."""
        offset = self.sum / self.n
        return self.products / self.n - torch.outer(offset, offset)

    def health(self) -> dict[str, float]:
        """Mean norm, largest share of the variance in one dimension, and effective rank.

        The effective rank is exp(H(p)), p the eigenvalues of the covariance over their sum (Roy and
        Vetterli 2007, of the covariance instead of the matrix): d_model for an isotropic cloud, 1
        for a line. A massive-activation dimension shows as a large share.
        """
        covariance = self.covariance()
        variances = covariance.diagonal().clamp_min(0.0)
        eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0.0)
        share = eigenvalues / eigenvalues.sum()
        entropy = -torch.special.xlogy(share, share).sum()
        return {
            "mean_norm": self.norms / self.n,
            "max_variance_share": float(variances.max() / variances.sum()),
            "effective_rank": float(entropy.exp()),
        }
