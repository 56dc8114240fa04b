"""Firings sorted in memory, which collecting sorts on disk, and the pools of windows."""

from __future__ import annotations

import numpy as np

from nullsae.latents.store import Firings, offsets_of
from nullsae.latents.windows import Grid, deal_documents, pools_of


def sort_firings(
    latent: np.ndarray, position: np.ndarray, value: np.ndarray, n_latents: int
) -> Firings:
    """Sort integers `latent` and `position` and float32 `value`, each [n]."""
    order = np.lexsort((position, latent))
    offsets = offsets_of(np.bincount(latent, minlength=n_latents))
    return Firings(offsets, position[order], value[order])


def pool_of_cells(grid: Grid, generator: np.random.Generator) -> np.ndarray:
    """Return int8 [n_windows]: 0 explain, 1 score, -1 for cells across documents."""
    return pools_of(grid.document, deal_documents(grid, generator))
