"""Where the causal effects of latents are measured: firings, and tokens of silent windows.

Contexts stand in one random order, the same for all latents and variants. A latent gets the first
ones in which there is a place for it, and one place in each: latents share passes over contexts,
and a variant is compared with another on the same text as far as their firings allow.
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
    """int64 [n]: index of the latent among those that were asked for."""
    position: np.ndarray
    """int64 [n]: flat positions, for one latent all in different contexts."""
    value: np.ndarray
    """float64 [n]: the latent's activation there; 0 where it is silent."""

    def enough(self, n_latents: int, least: int) -> np.ndarray:
        """Which latents have at least so many places: bool [n_latents]."""
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
    """Up to `n` firings of each latent, chosen at random among those of a context.

    Args:
        firings: of all latents.
        latents: int64 [n_latents].
        follows: int32 [n_tokens], -1 where no token follows in the same context and document, as
            `next_token.Successors.pair`: such firings are left out.
        split: that the firings are of.
        order: int64 [n_contexts], a permutation of the contexts.
        n: the most contexts of a latent.
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
    """Up to `n` tokens of each latent in windows in which it is silent.

    Args:
        cells: the windows in which each latent fires, as `Described.cells`.
        latents: int64 [n_latents].
        grid: windows of the split; none across documents is taken.
        skipped: says of flat positions which of them do not count, bool of their shape.
        order: int64 [n_contexts], a permutation of the contexts.
        n: the most contexts of a latent.
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
    """A random member of each group (int64 [n]), in the order of the groups: int64 [n_groups]."""
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
