"""Config key `report`: what the page shows."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from nullsae.config.section import Section


class Report(Section):
    """Contents of the report page."""

    title: str = "nullsae"
    n_example_latents: NonNegativeInt = 200
    """Latents per SAE in the page's browser, sampled ones first; 0 for no browser."""
    n_example_windows: PositiveInt = 4
    """Windows shown per sampled latent."""
    figure_formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")
    """Formats of the files in results/figures."""
