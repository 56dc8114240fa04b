"""Activations without a model: Gaussian samples with a variant's mean and covariance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nullsae.activations.store import SiteReader
from nullsae.core.devices import exact_device
from nullsae.core.moments import Moments
from nullsae.core.randomness import torch_generator
from nullsae.jobs.keys import ModelKeys

# With fewer tokens per dimension, the sample covariance is shrunk.
ENOUGH_TOKENS = 10
# An eigenvalue of the correlation matrix below this share of the largest one is rounding error.
ROUNDING = 1e-13
# A dimension is constant, up to rounding, if its standard deviation over its mean is below this.
CONSTANT = 1e-12


def fit_moments(reader: SiteReader, device: torch.device) -> Moments:
    """Check a site's shards and return the moments of its activations."""
    reader.check()
    fit = Moments(reader.d_model, device=device)
    for x, _ in reader.batches():
        fit.add(x)
    return fit


def oas_shrinkage(covariance: Tensor, n: int) -> float:
    """Return the OAS weight of the target tr(S)/p * I (Chen et al. 2010, eq. 23).

    S is the sample covariance [p, p] of n samples, with n in the denominator.
    """
    p = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    spread = square - trace**2 / p
    if spread <= 0.0:
        return 1.0  # S is its own target
    weight = ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * spread)
    return min(1.0, weight)


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance) in float64, the covariance as D R D with R a correlation matrix.

    In an eigendecomposition of the covariance, a dimension of massive activations would swamp the
    small ones; in R all dimensions have equal weight.
    """

    mean: Tensor
    """[d_model]."""
    scale: Tensor
    """Diagonal of D, [d_model]: standard deviations, 0 for constant dimensions."""
    eigenvalues: Tensor
    """Eigenvalues of R, ascending, [d_model]; those due to rounding are 0."""
    eigenvectors: Tensor
    """Eigenvectors of R as columns, [d_model, d_model]."""
    root: Tensor
    """R^(1/2) D, [d_model, d_model], R^(1/2) symmetric: no eigenvector's sign matters."""
    shrinkage: float
    """Weight of the isotropic target in the covariance; 0 if there were enough tokens."""

    @classmethod
    def fitted_to(cls, moments: Moments, device: torch.device) -> Gaussian:
        """Fit to moments; with fewer than 10 tokens per dimension, shrink the covariance.

        The tensors are on `device` if that has float64.
        """
        mean, covariance = moments.mean(), moments.covariance()
        d_model, shrinkage = len(mean), 0.0
        if moments.n < ENOUGH_TOKENS * d_model:
            shrinkage = oas_shrinkage(covariance, moments.n)
            target = torch.eye(d_model, dtype=torch.float64) * (covariance.trace() / d_model)
            covariance = (1 - shrinkage) * covariance + shrinkage * target
        scale = covariance.diagonal().clamp_min(0.0).sqrt()
        scale = torch.where(scale > CONSTANT * mean.abs(), scale, 0.0)
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        eigenvalues, vectors = torch.linalg.eigh(inverse[:, None] * covariance * inverse)
        floor = ROUNDING * float(eigenvalues[-1])
        eigenvalues = torch.where(eigenvalues > floor, eigenvalues, 0.0)
        root = (vectors * eigenvalues.sqrt()) @ vectors.t() * scale
        mean, scale, eigenvalues, vectors, root = (
            tensor.to(exact_device(device)) for tensor in (mean, scale, eigenvalues, vectors, root)
        )
        return cls(mean, scale, eigenvalues, vectors, root, shrinkage)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw samples, float64 [n, d_model], on the CPU, so that they are the same everywhere."""
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + noise.to(self.mean.device) @ self.root

    def contexts(
        self, contexts: range, length: int, seed: int, keys: ModelKeys, site: str, split: str
    ) -> Iterator[Tensor]:
        """Yield the samples of each context, float64 [length, d_model].

        They depend only on the context's index and the other arguments.
        """
        for context in contexts:
            of = (keys.variant, keys.subject, keys.draw, site, split, context)
            yield self.sample(length, torch_generator(seed, *of))
