"""A metric of another package: one file, one entry point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nullsae.config.metrics import Column, Direction, Metric

if TYPE_CHECKING:
    from nullsae.latents.split import Split
    from nullsae.latents.store import Firings

Numbers = NDArray[np.float64]


class Kurtosis(Metric):
    """How heavy the tail of a latent's activations is."""

    name = "kurtosis"
    title = "Excess kurtosis of activations"
    column = Column("kurtosis", "excess, over firings")
    directions: Mapping[str, Direction] = {"step0": -1}
    floor, margin_share = 0.0, 0.2
    section = "tokens"
    definition = "m4 / m2² - 3 of the activations of a latent where it fires."
    reading = "0 is a normal distribution; a few strong firings among many weak ones raise it."

    def latent_sums(self, firings: Firings, split: Split) -> dict[str, Numbers]:
        """Return sums of the first four powers."""
        value = firings.value.astype(np.float64)
        return {
            str(power): np.bincount(firings.latent, value**power, minlength=firings.n_latents)
            for power in (1, 2, 3, 4)
        }

    def latent_column(
        self, sums: Mapping[str, Numbers], counts: NDArray[np.int64], split: Split
    ) -> Numbers:
        """Turn moments about 0 into moments about the mean."""
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b, c, d = (sums[str(power)] / counts for power in (1, 2, 3, 4))
            spread = b - a**2
            fourth = d - 4 * a * c + 6 * a**2 * b - 3 * a**4
            found: Numbers = np.where(spread > 1e-9 * b, fourth / spread**2 - 3, np.nan)
        return found


class PositionShare(Metric):
    """Where in its contexts a latent fires, computed from existing columns."""

    name = "position_share"
    title = "Mean position over its spread"
    columns = ("mean_position_tokens", "sd_position_tokens")
    floor = 0.0
    section = "tokens"
    definition = "Mean offset in the context over its standard deviation."
    reading = "√3 is a latent that fires anywhere."

    def value(self, columns: Mapping[str, Numbers]) -> Numbers:
        """Return one number per latent."""
        return columns["mean_position_tokens"] / columns["sd_position_tokens"]


class EffectiveRank(Metric):
    """One number per SAE, so only draws and seeds are resampled."""

    name = "decoder_rank"
    title = "Effective rank of the decoder"
    table = "geometry"
    columns = ("effective_rank",)
    floor = 0.0
    section = "dictionaries"
    definition = "exp of the entropy of the decoder's spectrum."
    reading = "Of random directions it is close to the smaller of width and n_latents."
