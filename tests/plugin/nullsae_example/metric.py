"""A metric with a column of its own: how skewed a latent's activations are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nullsae.config.metrics import Column, Firings, Metric, Split

if TYPE_CHECKING:
    from nullsae.config.metrics import Array, Numbers


class ActivationSkewness(Metric):
    """Third standardized moment over firings."""

    name = "activation_skewness"
    title = "Skewness of activations"
    column = Column("activation_skewness", "of the activations at firings")
    direction = 0
    margin = 0.25
    section = "tokens"
    values = "(-∞, ∞)"
    definition = "E[(a - mean)³] / sd³ over the activations a of a latent where it fires."
    reading = "0 is a symmetric distribution; a few very strong firings make it large."

    def latent_sums(self, firings: Firings, split: Split) -> dict[str, Numbers]:
        value = np.asarray(firings.value, dtype=np.float64)
        return {
            str(power): np.bincount(firings.latent, value**power, firings.n_latents)
            for power in (1, 2, 3)
        }

    def latent_column(self, sums: Mapping[str, Numbers], counts: Array, split: Split) -> Numbers:
        with np.errstate(divide="ignore", invalid="ignore"):
            mean, square, cube = (sums[str(power)] / counts for power in (1, 2, 3))
            spread = square - mean**2
            skewness = (cube - 3 * mean * spread - mean**3) / spread**1.5
        return np.where(spread > 1e-12 * square, skewness, np.nan)
