"""A metric with a column of its own: how skewed a latent's activations are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nullsae.config.metrics import Column, Metric

if TYPE_CHECKING:
    from nullsae.config.metrics import Counts, Numbers


class ActivationSkewness(Metric):
    """Third standardized moment over firings."""

    name = "activation_skewness"
    title = "Skewness of activations"
    column = Column("activation_skewness", "of the activations at firings")
    direction = 0
    floor = 0.0
    section = "tokens"
    values = "(-∞, ∞)"
    definition = "E[(a - mean)³] / sd³ over the activations a of a latent where it fires."
    reading = "0 is a symmetric distribution; a few very strong firings make it large."

    def latent_sums(self, firings: Any, split: Any) -> dict[str, Numbers]:
        value = np.asarray(firings.value, dtype=np.float64)
        return {
            str(power): np.bincount(firings.latent, value**power, firings.n_latents).astype(float)
            for power in (1, 2, 3)
        }

    def latent_column(self, sums: Mapping[str, Numbers], counts: Counts, split: Any) -> Numbers:
        with np.errstate(divide="ignore", invalid="ignore"):
            mean, square, cube = (sums[str(power)] / counts for power in (1, 2, 3))
            spread = square - mean**2
            skewness = (cube - 3 * mean * spread - mean**3) / spread**1.5
        # Sums of powers cancel: of a latent that is nearly constant, no digit would be left.
        return np.where(spread > 1e-6 * square, skewness, np.nan)
