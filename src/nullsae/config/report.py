"""Config key `report`: what the page shows."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from nullsae.config.section import Section


class Report(Section):
    """What the page shows."""

    title: str = "nullsae"
    n_example_latents: NonNegativeInt = 3
    """Latents shown per SAE, with their strongest windows."""
    n_example_windows: PositiveInt = 4
    """Windows shown per latent."""
    figure_formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")
    """Formats of the files in results/figures."""
