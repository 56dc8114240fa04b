"""Windows: stretches of contexts, two pools of documents, and draws from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nullsae.config.latents import Latents, SilentKind
from nullsae.latents.split import Split
from nullsae.latents.store import Firings, changes

POOLS = ("explain", "score")
# Contexts whose documents are processed together.
PIECE_CONTEXTS = 4096


@dataclass(frozen=True)
class Grid:
    """Non-overlapping cells of equal length, cut from the start of each context."""

    window_tokens: int
    context_tokens: int
    document: np.ndarray
    """int32 [n_windows]: the document of each cell, -1 if it touches two."""

    @classmethod
    def cut(cls, document_id: np.ndarray, window_tokens: int) -> Grid:
        """Cut contexts [n_contexts, context_tokens] of document ids, dropping remainders."""
        n_contexts, context_tokens = document_id.shape
        per_context = context_tokens // window_tokens
        parts = [np.zeros(0, dtype=np.int32)]
        for start in range(0, n_contexts, PIECE_CONTEXTS):
            rows = document_id[start : start + PIECE_CONTEXTS, : per_context * window_tokens]
            cells = rows.reshape(-1, window_tokens)
            whole = (cells == cells[:, :1]).all(axis=1)
            parts.append(np.where(whole, cells[:, 0], -1).astype(np.int32))
        return cls(window_tokens, context_tokens, np.concatenate(parts))

    @property
    def n_windows(self) -> int:
        return len(self.document)

    @property
    def per_context(self) -> int:
        return self.context_tokens // self.window_tokens

    def cell_of(self, position: np.ndarray) -> np.ndarray:
        """Return the cell of each flat position [n], int64 [n]; -1 in a context's remainder."""
        context, offset = np.divmod(position.astype(np.int64), self.context_tokens)
        index = offset // self.window_tokens
        return np.where(index < self.per_context, context * self.per_context + index, -1)

    def start(self, window: np.ndarray) -> np.ndarray:
        """Return the flat position of the first token of each cell [n], int64 [n]."""
        context, index = np.divmod(window.astype(np.int64), self.per_context)
        starts: np.ndarray = context * self.context_tokens + index * self.window_tokens
        return starts


def deal_documents(grid: Grid, generator: np.random.Generator) -> np.ndarray:
    """Deal documents to the two pools so that these have about equally many cells.

    Documents come in random order, and each goes to the pool with fewer cells so far. Explaining
    and scoring windows therefore never share a document. Returns int8 [n_documents]: 0 explain, 1
    score, up to the last document with a whole cell.
    """
    n_documents = int(grid.document.max(initial=-1)) + 1
    size = np.bincount(grid.document[grid.document >= 0], minlength=n_documents)
    pool_of = np.zeros(n_documents, dtype=np.int8)
    filled = [0, 0]
    for document in generator.permutation(n_documents):
        pool_of[document] = pool = int(filled[1] < filled[0])
        filled[pool] += int(size[document])
    return pool_of


def pools_of(document: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """Return the pool of each document, int8 [n]; -1 for none.

    Documents after the last one with a whole cell were not dealt; they alternate.
    """
    known = np.append(dealt, np.int8(0))[np.minimum(document, len(dealt))]
    pool = np.where(document < len(dealt), known, document % 2)
    return np.where(document >= 0, pool, -1).astype(np.int8)


@dataclass(frozen=True)
class Candidates:
    """Active windows of one or several latents, sorted by latent, then by start."""

    counts: np.ndarray
    """int64 [n_latents]: candidates of each latent."""
    window: np.ndarray
    """int64 [n]: the grid cell of each."""
    start: np.ndarray
    """int64 [n]: flat position of its first token."""
    peak: np.ndarray
    """float32 [n]: the latent's largest activation in the cell."""
    n_too_short: int = 0
    """Cells without a candidate, because the stretch of the document is shorter than a window."""

    @property
    def latent(self) -> np.ndarray:
        """The latent of each, int64 [n]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def kept(self, mask: np.ndarray) -> Candidates:
        """Return the candidates that a bool mask [n] marks."""
        counts = np.bincount(self.latent[mask], minlength=len(self.counts))
        return Candidates(counts, self.window[mask], self.start[mask], self.peak[mask])


def active_cells(firings: Firings, grid: Grid) -> tuple[Candidates, np.ndarray]:
    """Return the grid cells in which latents fire, including those that touch two documents.

    They come as candidates, with the position of each peak, int64 [n], the first of equals.
    """
    cell = grid.cell_of(firings.position)
    latent, inside = firings.latent, cell >= 0
    if not inside.all():
        latent, cell = latent[inside], cell[inside]
    value, position = firings.value[inside], firings.position[inside]
    new = changes(latent, cell)
    first = np.flatnonzero(new)
    peak = np.maximum.reduceat(value, first) if len(first) else value[:0]
    of_cell = np.cumsum(new) - 1
    at_peak = np.flatnonzero(value == peak[of_cell])
    _, earliest = np.unique(of_cell[at_peak], return_index=True)
    counts = np.bincount(latent[first], minlength=firings.n_latents)
    window = cell[first]
    where = position[at_peak[earliest]].astype(np.int64)
    return Candidates(counts, window, grid.start(window), peak), where


def centred(cells: Candidates, peak_at: np.ndarray, grid: Grid, split: Split) -> Candidates:
    """Make the candidates of `latents.windows: centred`.

    For each cell, a span of the same length around its peak at `peak_at` (int64 [n]), shifted as
    far as needed to fit into one context and one document; none if that stretch is too short. If
    two spans of a latent overlap, the stronger stays, or the first of equals.
    """
    length = grid.window_tokens
    first, end = split.stretch(peak_at)
    start = np.clip(peak_at - length // 2, first, np.maximum(end - length, first))
    fits = end - first >= length
    spans = replace(cells, start=start).kept(fits)
    found = spans.kept(_strongest_apart(spans, length))
    return replace(found, n_too_short=int((~fits).sum()))


def _strongest_apart(spans: Candidates, length: int) -> np.ndarray:
    """Return which spans a greedy choice by strength keeps, without overlaps within a latent.

    It works in rounds: spans that are the strongest among all that they overlap are kept, those
    that they overlap are dropped, and the remaining ones go to the next round. A chain of ever
    stronger spans ends with its context, so there are few rounds.
    """
    latent, start, peak = spans.latent, spans.start, spans.peak
    keep = np.zeros(len(latent), dtype=bool)
    left = np.arange(len(latent))
    while len(left):
        best, pairs = np.ones(len(left), dtype=bool), []
        for step in range(1, len(left)):
            one, other = left[:-step], left[step:]
            close = np.flatnonzero(
                (latent[one] == latent[other]) & (start[other] - start[one] < length)
            )
            if not len(close):
                break
            stronger = peak[left[close]] >= peak[left[close + step]]
            best[close[~stronger]] = False
            best[close[stronger] + step] = False
            pairs.append((close, close + step))
        fallen = best.copy()
        for one, other in pairs:
            fallen[one[best[other]]] = True
            fallen[other[best[one]]] = True
        keep[left[best]] = True
        left = left[~fallen]
    return keep


def quantiles(peaks: np.ndarray, n_quantiles: int) -> np.ndarray:
    """Divide windows by the rank of their peak into equal counts: int64 [n], 0 is the strongest.

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
    """int64 [n]: grid cells, ascending; in the pool `top`, strongest first."""
    start: np.ndarray
    """int64 [n]: flat position of each window's first token."""
    quantile: np.ndarray | None = None
    """int64 [n] for active windows of the two pools."""
    silent_kind: SilentKind | None = None
    """How silent windows were chosen; None for active ones."""


def draw_windows(
    active: Candidates,
    pools: np.ndarray,
    silent: np.ndarray,
    grid: Grid,
    settings: Latents,
    generator: np.random.Generator,
) -> list[Draw]:
    """Draw the windows of one latent for explainers and scorers, without replacement.

    Explaining: uniform among the active and the silent windows of the explaining pool. Scoring:
    the same number from each quantile of the scoring pool's active windows (all of a quantile
    that has fewer), and uniform among its silent windows if `random` is one of
    `settings.silent_windows`. The other kinds come after these, from the rest of the pool
    (`latents.silent`). So `random` stays a sample of all silent windows, independent of other
    kinds, except for latents that are silent too rarely for all (`silent_of_each_kind`). `pools`
    (int8 [n]) is the pool of each candidate in `active`. `silent` (int8 [n_windows]) is that of
    each cell in which the latent is silent, and -1 for the others.
    """
    draws = []
    for index, pool in enumerate(POOLS):
        mine = np.flatnonzero(pools == index)
        candidates = np.flatnonzero(silent == index)
        slices = quantiles(active.peak[mine], settings.n_quantiles)
        if pool == "explain":
            n_silent = settings.explain_silent_windows
            chosen = _choose(np.arange(len(mine)), settings.explain_active_windows, generator)
        else:
            n_silent = silent_of_each_kind(len(candidates), settings)
            each = -(-settings.score_active_windows // settings.n_quantiles)
            parts = [
                _choose(np.flatnonzero(slices == quantile), each, generator)
                for quantile in range(settings.n_quantiles)
            ]
            chosen = _choose(np.concatenate(parts), settings.score_active_windows, generator)
        own = mine[chosen]
        draws.append(Draw(pool, True, active.window[own], active.start[own], slices[chosen]))
        if pool == "explain" or "random" in settings.silent_windows:
            picked = _choose(candidates, n_silent, generator)
            draws.append(Draw(pool, False, picked, grid.start(picked), silent_kind="random"))
    return draws


def top_windows(active: Candidates, n: int) -> Draw:
    """Return the `n` strongest of a latent's candidates, from any document, strongest first.

    Ties go to the earlier one in the split.
    """
    best = np.argsort(-active.peak, kind="stable")[:n] if n else np.zeros(0, dtype=np.int64)
    return Draw("top", True, active.window[best], active.start[best])


def silent_of_each_kind(n_silent: int, settings: Latents) -> int:
    """Count scoring windows of each kind for a latent with `n_silent` silent ones in the pool.

    If a latent is rarely silent, the kinds share its windows: each has some, none is used twice.
    """
    return min(settings.score_silent_windows, n_silent // len(set(settings.silent_windows)))


def _choose(items: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Choose at most n items without replacement, in ascending order."""
    return np.sort(generator.choice(items, size=min(n, len(items)), replace=False))
