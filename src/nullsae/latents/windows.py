"""Windows: a fixed grid over contexts, two pools of documents, and draws from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nullsae.config import Latents
from nullsae.judges import SilentKind

POOLS = ("explain", "score")


@dataclass(frozen=True)
class Grid:
    """Non-overlapping windows of equal length, cut from the start of each context."""

    window_tokens: int
    context_tokens: int
    document: np.ndarray
    """int64 [n_windows]: the document of each window, -1 where it touches two."""

    @classmethod
    def cut(cls, document_id: np.ndarray, window_tokens: int) -> Grid:
        """Cut contexts [n_contexts, context_tokens] of document ids; a shorter rest is left out."""
        n_contexts, context_tokens = document_id.shape
        per_context = context_tokens // window_tokens
        cells = document_id[:, : per_context * window_tokens]
        cells = cells.reshape(n_contexts * per_context, window_tokens).astype(np.int64)
        whole = (cells == cells[:, :1]).all(axis=1)
        return cls(window_tokens, context_tokens, np.where(whole, cells[:, 0], -1))

    @property
    def n_windows(self) -> int:
        return len(self.document)

    def window_of(self, position: np.ndarray) -> np.ndarray:
        """Window of each flat token position, -1 outside any or where it touches two documents."""
        context, offset = np.divmod(position, self.context_tokens)
        per_context = self.context_tokens // self.window_tokens
        inside = offset < per_context * self.window_tokens
        window = np.where(inside, context * per_context + offset // self.window_tokens, 0)
        return np.where(inside & (self.document[window] >= 0), window, -1)

    def start(self, window: np.ndarray) -> np.ndarray:
        """Flat position of each window's first token."""
        per_context = self.context_tokens // self.window_tokens
        context, index = np.divmod(window, per_context)
        starts: np.ndarray = context * self.context_tokens + index * self.window_tokens
        return starts

    def positions(self, window: np.ndarray) -> np.ndarray:
        """Flat positions of the tokens of windows [n], int64 [n, window_tokens]."""
        positions: np.ndarray = self.start(window)[:, None] + np.arange(self.window_tokens)
        return positions


def assign_pools(grid: Grid, generator: np.random.Generator) -> np.ndarray:
    """Deal documents to the two pools so that they hold about equally many windows.

    Documents come in random order, each going to the pool with fewer windows so far. Explaining
    and scoring windows therefore never share a document.

    Returns:
        int8 [n_windows]: 0 explain, 1 score, -1 for windows across documents.
    """
    n_documents = int(grid.document.max(initial=-1)) + 1
    size = np.bincount(grid.document[grid.document >= 0], minlength=n_documents)
    pool_of = np.zeros(n_documents, dtype=np.int8)
    filled = [0, 0]
    for document in generator.permutation(n_documents):
        pool = int(filled[1] < filled[0])
        pool_of[document] = pool
        filled[pool] += int(size[document])
    if n_documents == 0:
        return np.full(grid.n_windows, -1, dtype=np.int8)
    return np.where(grid.document >= 0, pool_of[grid.document], -1).astype(np.int8)


def quantiles(peaks: np.ndarray, n_quantiles: int) -> np.ndarray:
    """Equal-count slices of windows ranked by their peak: int64 [n], 0 is the strongest.

    Ties keep the order of the windows.
    """
    rank = np.empty(len(peaks), dtype=np.int64)
    rank[np.argsort(-peaks, kind="stable")] = np.arange(len(peaks))
    return rank * n_quantiles // max(1, len(peaks))


@dataclass(frozen=True)
class Draw:
    """Windows drawn for one latent."""

    pool: str
    active: bool
    window: np.ndarray
    """int64 [n], ascending."""
    quantile: np.ndarray | None = None
    """int64 [n] for active windows."""
    silent_kind: SilentKind | None = None
    """Of silent windows: how they were chosen."""


def draw_windows(
    active_windows: np.ndarray,
    peaks: np.ndarray,
    pools: np.ndarray,
    settings: Latents,
    generator: np.random.Generator,
) -> list[Draw]:
    """The windows of one latent that explainers and scorers will see, without replacement.

    Explaining: uniform among the active and the silent windows of the explaining pool. Scoring:
    the same number from each quantile of the scoring pool's active windows (all of a quantile
    that holds fewer), and uniform among its silent windows if `random` is one of
    `settings.silent_windows`. The other kinds come after these and from what is left of the pool
    (`latents.silent`): `random` stays a sample of all silent windows, and the same one whatever
    other kinds are drawn, but for latents too rarely silent for all (`silent_of_each_kind`).

    Args:
        active_windows: int64 [n], ascending: the windows in which the latent fires.
        peaks: float [n], its largest activation in each.
        pools: int8 [n_windows], as from `assign_pools`.
        settings: sizes.
        generator: keyed to the latent.
    """
    draws = []
    silent = np.ones(len(pools), dtype=bool)
    silent[active_windows] = False
    for index, pool in enumerate(POOLS):
        mine = pools[active_windows] == index
        window, peak = active_windows[mine], peaks[mine]
        candidates = np.flatnonzero(silent & (pools == index))
        slices = quantiles(peak, settings.n_quantiles)
        if pool == "explain":
            n_silent = settings.explain_silent_windows
            chosen = _choose(np.arange(len(window)), settings.explain_active_windows, generator)
        else:
            n_silent = silent_of_each_kind(len(candidates), settings)
            each = -(-settings.score_active_windows // settings.n_quantiles)
            parts = [
                _choose(np.flatnonzero(slices == quantile), each, generator)
                for quantile in range(settings.n_quantiles)
            ]
            chosen = _choose(np.concatenate(parts), settings.score_active_windows, generator)
        draws.append(Draw(pool, True, window[chosen], slices[chosen]))
        if pool == "explain" or "random" in settings.silent_windows:
            picked = _choose(candidates, n_silent, generator)
            draws.append(Draw(pool, False, picked, silent_kind="random"))
    return draws


def silent_of_each_kind(n_silent: int, settings: Latents) -> int:
    """Scoring windows of each kind, for a latent with `n_silent` silent windows in that pool.

    A latent that is rarely silent shares them out: each kind has some, and no two the same.
    """
    return min(settings.score_silent_windows, n_silent // len(set(settings.silent_windows)))


def _choose(items: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """At most n of the items, without replacement, in ascending order."""
    return np.sort(generator.choice(items, size=min(n, len(items)), replace=False))
