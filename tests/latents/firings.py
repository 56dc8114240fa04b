"""Firings sorted in memory, which collecting sorts on the disk."""

from __future__ import annotations

import numpy as np

from nullsae.latents.store import Firings, offsets_of


def sort_firings(
    latent: np.ndarray, position: np.ndarray, value: np.ndarray, n_latents: int
) -> Firings:
    """From integers `latent` and `position` and float32 `value`, each [n]."""
    order = np.lexsort((position, latent))
    offsets = offsets_of(np.bincount(latent, minlength=n_latents))
    return Firings(offsets, position[order], value[order])
