"""Describes every latent by its sorted firings: statistics, and where its windows are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from nullsae.config.latents import Latents
from nullsae.latents.split import Split
from nullsae.latents.statistics import Sums
from nullsae.latents.store import Columns, Firings, offsets_of
from nullsae.latents.windows import POOLS, Candidates, Grid, active_cells, centred, pools_of


@dataclass(frozen=True)
class Described:
    """Statistics and active windows of all latents of an SAE."""

    statistics: dict[str, np.ndarray]
    """Columns of the table `latents`, each [n_latents]; NaN (or -1) if undefined."""
    cells: Firings
    """The cells in which each latent fires, without cells across documents: `position` is the cell,
    `value` its peak. Memory-mapped."""
    spans: dict[str, np.ndarray]
    """`window`, `peak` and, for centred ones, `start` of the candidates for active windows;
    memory-mapped."""
    span_offsets: np.ndarray
    """int64 [n_latents + 1]: where each latent's candidates begin."""
    active: np.ndarray
    """int64 [2, n_latents]: candidates in each pool."""
    silent: np.ndarray
    """int64 [2, n_latents]: cells of each pool in which the latent is silent."""
    n_too_short: int
    """As in `Candidates`, summed over latents."""
    grid: Grid

    def candidates(self, latent: int) -> Candidates:
        """Return one latent's candidates for active windows."""
        own = slice(int(self.span_offsets[latent]), int(self.span_offsets[latent + 1]))
        window = self.spans["window"][own].astype(np.int64)
        starts = self.spans.get("start")
        start = self.grid.start(window) if starts is None else starts[own].astype(np.int64)
        peak = np.array(self.spans["peak"][own])
        return Candidates(np.array([len(window)]), window, start, peak)


def describe(
    firings: Firings,
    split: Split,
    grid: Grid,
    pools: np.ndarray,
    dealt: np.ndarray,
    settings: Latents,
    folder: Path,
    n_tokens: int,
) -> Described:
    """Describe latents by the sorted firings of a split, some latents at a time.

    `pools` (int8 [n_windows]) is the pool of each cell and `dealt` (int8 [n_documents]) that of
    each document (`deal_documents`). `n_tokens` of the split's tokens count. Files go to `folder`,
    which the caller deletes. Memory: about 150 bytes x `store.PIECE_FIRINGS`, and 350 bytes per
    latent. A full disk raises a `UserError`.
    """
    n = firings.n_latents
    columns: list[dict[str, np.ndarray]] = []
    place = firings.position.dtype
    cell_store = Columns(folder, "cells", window=place, peak=np.float32)
    span_store = Columns(folder, "spans", window=place, start=place, peak=np.float32)
    n_cells, n_spans = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    active, fires_in = (np.zeros((len(POOLS), n), dtype=np.int64) for _ in range(2))
    n_too_short = 0
    for first, pieces in groupby(firings.pieces(split.context_tokens), key=itemgetter(0)):
        sums: Sums | None = None
        for _, part in pieces:
            of_part = Sums.of(part, split)
            sums = of_part if sums is None else sums.then(of_part)
            mine = slice(first, first + part.n_latents)
            every, peak_at = active_cells(part, grid)
            cells = spans = every.kept(grid.document[every.window] >= 0)
            if settings.windows == "centred":
                spans = centred(every, peak_at, grid, split)
                n_too_short += spans.n_too_short
                span_store.append(window=spans.window, start=spans.start, peak=spans.peak)
            cell_store.append(window=cells.window, peak=cells.peak)
            n_cells[mine] += cells.counts
            n_spans[mine] += spans.counts
            fires_in[:, mine] += _by_pool(cells, pools[cells.window])
            active[:, mine] += _by_pool(spans, pools_of(split.document[spans.start], dealt))
        assert sums is not None
        columns.append(sums.columns(split, n_tokens))
    cell_columns, span_columns = cell_store.mapped(), span_store.mapped()
    in_pool = np.array([[int((pools == pool).sum())] for pool in range(len(POOLS))])
    return Described(
        statistics={name: np.concatenate([c[name] for c in columns]) for name in columns[0]},
        cells=Firings(offsets_of(n_cells), cell_columns["window"], cell_columns["peak"]),
        spans=span_columns if settings.windows == "centred" else cell_columns,
        span_offsets=offsets_of(n_spans),
        active=active,
        silent=in_pool - fires_in,
        n_too_short=n_too_short,
        grid=grid,
    )


def _by_pool(candidates: Candidates, pools: np.ndarray) -> np.ndarray:
    """Count the candidates of each latent in each pool: int64 [2, n_latents]."""
    return np.stack([candidates.kept(pools == pool).counts for pool in range(len(POOLS))])
