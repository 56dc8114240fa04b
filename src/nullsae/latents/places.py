"""Where the causal effects of latents are measured: firings, and tokens of silent windows.

Contexts have one random order, the same for all latents and variants. A latent gets one place in
each of the first contexts that have a place for it. This lets latents share passes over contexts,
and compares variants on the same text as far as their firings allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nullsae.latents.split import Split
from nullsae.latents.store import Firings, changes
from nullsae.latents.windows import Grid


@dataclass(frozen=True)
class Places:
    """Tokens of a split, some for each of several latents, sorted by latent."""

    of: np.ndarray
    """int64 [n]: index of the latent among the requested ones."""
    position: np.ndarray
    """int64 [n]: flat positions, in different contexts for each latent."""
    value: np.ndarray
    """float64 [n]: the latent's activation there; 0 if it is silent."""

    def enough(self, n_latents: int, least: int) -> np.ndarray:
        """Return which latents have at least this many places: bool [n_latents]."""
        return np.bincount(self.of, minlength=n_latents) >= least


def firing_places(
    firings: Firings,
    latents: np.ndarray,
    follows: np.ndarray,
    split: Split,
    order: np.ndarray,
    n: int,
    generator_of: Callable[[int], np.random.Generator],
) -> Places:
    """Choose up to `n` firings of each latent, at random within a context.

    Args:
        firings: of all latents.
        latents: int64 [n_latents].
        follows: int32 [n_tokens], -1 if no token follows in the same context and document, as in
            `next_token.Successors.pair`; such firings are left out.
        split: of the firings.
        order: int64 [n_contexts], a permutation of the contexts.
        n: maximal number of contexts of a latent.
        generator_of: a latent's own generator.
    """
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    found = []
    for latent in latents.tolist():
        own = firings.of(latent)
        position = firings.position[own].astype(np.int64)
        followed = np.flatnonzero(follows[position] >= 0)
        position = position[followed]
        of_context = rank[position // split.context_tokens]
        chosen = _one_of_each(of_context, generator_of(latent))[:n]
        found.append((position[chosen], firings.value[own][followed[chosen]]))
    return _places(found)


def silent_places(
    cells: Firings,
    latents: np.ndarray,
    grid: Grid,
    skipped: Callable[[np.ndarray], np.ndarray],
    order: np.ndarray,
    n: int,
    generator_of: Callable[[int], np.random.Generator],
) -> Places:
    """Choose up to `n` tokens of each latent in windows in which it is silent.

    Args:
        cells: the windows in which each latent fires, as `Described.cells`.
        latents: int64 [n_latents].
        grid: windows of the split; those across documents are not used.
        skipped: maps flat positions to whether they do not count, bool of their shape.
        order: int64 [n_contexts], a permutation of the contexts.
        n: maximal number of contexts of a latent.
        generator_of: a latent's own generator.
    """
    whole = (grid.document >= 0).reshape(-1, grid.per_context)
    within = np.arange(grid.window_tokens)
    found = []
    for latent in latents.tolist():
        silent = whole.copy()
        silent.reshape(-1)[cells.position[cells.of(latent)]] = False
        generator, start = generator_of(latent), 0
        positions: list[int] = []
        while len(positions) < n and start < len(order):
            # Nearly all contexts have one.
            contexts = order[start : start + n]
            start += len(contexts)
            row, cell = np.nonzero(silent[contexts])
            first = grid.start(contexts[row] * grid.per_context + cell)
            at = (first[:, None] + within).reshape(-1)
            counts = ~skipped(at)
            at, row = at[counts], np.repeat(row, grid.window_tokens)[counts]
            positions += at[_one_of_each(row, generator)].tolist()
        position = np.array(positions[:n], dtype=np.int64)
        found.append((position, np.zeros(len(position))))
    return _places(found)


def _one_of_each(group: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a random member of each group (int64 [n]), in group order: int64 [n_groups]."""
    order = np.lexsort((generator.random(len(group)), group))
    first: np.ndarray = order[changes(group[order])]
    return first


def _places(found: list[tuple[np.ndarray, np.ndarray]]) -> Places:
    position, value = (
        (np.concatenate([np.zeros(0), *parts]) for parts in zip(*found, strict=True))
        if found
        else (np.zeros(0), np.zeros(0))
    )
    of = np.repeat(np.arange(len(found)), [len(at) for at, _ in found])
    return Places(of, position.astype(np.int64), value.astype(np.float64))
