"""Orthonormal directions, each with both signs, so that codes are not negative.

b_dec is the mean, so that a dimension with a large offset does not use up one of the k.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt

from nullsae.config.dictionaries import Dictionary
from nullsae.core.errors import UserError
from nullsae.sae.later import Autoencoder, Pairs, Tensor, autoencoder, moments, torch


class Signed(Dictionary):
    """Directions and their opposites; one of each pair is active."""

    trained: ClassVar[bool] = False
    product_share: ClassVar[float] = 0.5

    def most_active(self, d_model: int) -> int:
        return d_model

    def width(self, d_model: int, vocab_size: int | None) -> int:
        return 2 * self.most_active(d_model)

    def fit(self, k: int, reader: Any, batches: Pairs, corpus: Any, where: str) -> Autoencoder:
        n_directions = self.most_active(reader.d_model)
        if k > n_directions:
            raise UserError(
                f"{where}.k: {k} is larger than the number of directions, {n_directions}, "
                f"of dictionary {self.name!r} at {reader.d_model} dimensions"
            )
        directions, mean = self.directions(reader, batches)
        # Latent i is direction i, latent n + i its opposite; codes are coefficients about the mean.
        rows = torch.cat([directions[:n_directions], -directions[:n_directions]]).float()
        b_enc = torch.zeros(len(rows))
        return autoencoder.Autoencoder("topk", rows, b_enc, rows.clone(), mean.float(), k=k)

    def directions(self, reader: Any, batches: Pairs) -> tuple[Tensor, Tensor]:
        """Return directions float64 [n, d_model] and the mean [d_model] of the input of `fit`."""
        raise NotImplementedError


class Pca(Signed):
    """Principal components, strongest first."""

    name, position = "pca", 6
    summary = "has the principal components"
    caption = "Principal components of the activations, plus and minus; nothing is trained."

    n_components: PositiveInt | None = None
    """Directions of `pca`, strongest first; by default all."""

    def most_active(self, d_model: int) -> int:
        return min(d_model, self.n_components or d_model)

    def directions(self, reader: Any, batches: Pairs) -> tuple[Tensor, Tensor]:
        found = moments.Moments(reader.d_model)
        for x, _ in batches:
            found.add(x)
        return principal_components(found.covariance()), found.mean()

    def fit_flops(self, d_model: int, n_tokens: int) -> float:
        """Count operations for the covariance and its eigenvectors."""
        return 4.0 * d_model * d_model * n_tokens + 20.0 * d_model**3


class Identity(Signed):
    """The neuron basis."""

    name, position = "identity", 7
    summary = "has the neuron basis"
    caption = "The neuron basis: each dimension, plus and minus, is a latent; nothing is trained."

    def directions(self, reader: Any, batches: Pairs) -> tuple[Tensor, Tensor]:
        return torch.eye(reader.d_model, dtype=torch.float64), reader.mean()


def principal_components(covariance: Tensor) -> Tensor:
    """Return unit eigenvectors as rows, strongest first, each with its largest entry positive."""
    rows: Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1).t()
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign()
