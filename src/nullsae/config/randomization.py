"""Config key `randomization`: settings of the variants."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat

from nullsae.config.section import Section


class Randomization(Section):
    norm_parameters: Literal["rerandomize", "keep"] = "rerandomize"
    """What variants that redraw or permute weights do with gains and biases of normalization
    layers."""
    embedding_noise_std: PositiveFloat = 1.0
    """Standard deviation of the noise that replaces embeddings in `noise_embeddings`."""
    first_random_block: NonNegativeInt | None = None
    """`cascade` keeps the blocks before this one; by default the first half."""


class Settings(Section):
    """The part of `randomization` that one variant depends on; None for the rest."""

    norm_parameters: Literal["rerandomize", "keep"] | None = None
    embedding_noise_std: float | None = None
    first_random_block: NonNegativeInt | None = None
