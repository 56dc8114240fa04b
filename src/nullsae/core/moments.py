"""Mean, covariance and shape of activations, from one pass in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from nullsae.core.devices import exact_device

# A variance below this share of the mean square is rounding error of float64.
ROUNDING = 1e-12
# The health figures that need a variance.
SHARES = ("max_coordinate_variance_share", "max_eigenvalue_share", "effective_rank")


class Moments:
    """Streaming float64 moments of vectors; batching changes them only by rounding.

    Each batch contributes its own mean and its sum of products about that mean (Chan, Golub and
    LeVeque 1983, update formula 2.1 for vectors), so that neither a mean far from zero nor a first
    token with a massive activation costs digits. Memory: d_model^2 x 8 bytes.
    """

    def __init__(self, d_model: int, *, device: torch.device | None = None) -> None:
        """Start empty for vectors of length `d_model`; sums are on `device`, by default the CPU."""
        self.device = exact_device(device or torch.device("cpu"))
        self.n = 0
        self._mean = torch.zeros(d_model, dtype=torch.float64, device=self.device)
        self._products = torch.zeros(d_model, d_model, dtype=torch.float64, device=self.device)
        self._norms = 0.0

    def add(self, x: Tensor) -> None:
        """Add vectors [n, d_model] of any floating dtype and device."""
        if not len(x):
            return
        exact = x.detach().to(self.device).double()
        self._norms += float(exact.norm(dim=1).sum())
        mean = exact.mean(dim=0)
        centred = exact - mean
        step = mean - self._mean
        total = self.n + len(exact)
        self._products.addmm_(centred.t(), centred)
        self._products.addr_(step, step, alpha=self.n * len(exact) / total)
        self._mean += step * (len(exact) / total)
        self.n = total

    def mean(self) -> Tensor:
        """Return the mean, float64 [d_model], on the CPU."""
        return self._mean.cpu()

    def covariance(self) -> Tensor:
        """Return the covariance (over n), float64 [d_model, d_model], on the CPU."""
        return (self._products / self.n).cpu()

    def health(self) -> dict[str, float | None]:
        """Return the mean norm, the largest shares of the variance, and the effective rank.

        The shares are those of one coordinate and of one eigenvector of the covariance. The
        effective rank is exp(H(p)), with p the eigenvalues of the covariance over their sum (Roy
        and Vetterli 2007, for the covariance instead of the matrix): d_model for an isotropic
        cloud, 1 for a line. A massive-activation dimension shows as a large share. If all vectors
        are equal, all but the norm are None.
        """
        covariance = self.covariance()
        variances = covariance.diagonal().clamp_min(0.0)
        norm, total = self._norms / self.n, float(variances.sum())
        if total <= ROUNDING * float(self._mean.square().sum()):
            return {"mean_norm": norm} | dict.fromkeys(SHARES)
        eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0.0)
        share = eigenvalues / eigenvalues.sum()
        entropy = -torch.special.xlogy(share, share).sum()
        return {
            "mean_norm": norm,
            "max_coordinate_variance_share": float(variances.max()) / total,
            "max_eigenvalue_share": float(share.max()),
            "effective_rank": float(entropy.exp()),
        }
