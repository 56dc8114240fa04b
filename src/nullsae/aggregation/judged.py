"""The contribution of each document to the scores of a cell, from its judged windows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from nullsae.aggregation.cells import Units
from nullsae.autointerp.classification import window_influences
from nullsae.statistics.bootstrap import Documents, Floats, Ints


class Moved(NamedTuple):
    """The judged windows of a cell's latents that have scores."""

    latent: Ints
    """[n_windows], ascending."""
    document: Ints
    influences: dict[str, Floats]
    """By score, [n_windows]: the influence of each window on its latent's score."""


class JudgedWindows:
    """The predictions of a study, by the cell of `scores` that was made from them."""

    def __init__(self, predictions: Iterable[Units]) -> None:
        """Store cells of the table `predictions`, sorted by latent."""
        self._cells = {(*cell.arm, *cell.sae): cell for cell in predictions}
        self._moved: dict[tuple[str | None, ...], Moved] = {}

    @cached_property
    def _n_documents(self) -> int:
        largest = (int(c.column("document")[0].max()) for c in self._cells.values() if len(c.ids))
        return 1 + max(largest, default=0)

    def documents(self, scores: Units, column: str, latents: Ints) -> Documents | None:
        """Return documents' effects on the mean of a column of `scores` over latents (ascending).

        None if the column is not a score of windows, or the cell has no predictions.
        """
        found = self._effects(scores, column, latents)
        return None if found is None else _documents(*found)

    def differences(
        self, pair: tuple[Units, Units], column: str, latents: Ints
    ) -> Documents | None:
        """Return documents' effects on the mean difference, the second cell minus the first.

        `latents`, ascending, have scores in both. A document that is hard for both counts only by
        the difference of its effects.
        """
        found = [self._effects(scores, column, latents) for scores in pair]
        if found[0] is None or found[1] is None:
            return None
        (own, _), (other, windows) = found[0], found[1]
        return _documents(other - own, windows)

    def _effects(self, scores: Units, column: str, latents: Ints) -> tuple[Floats, Floats] | None:
        """Return each document's effect on each latent's part of the mean, and its windows.

        They are [n_latents, n_documents] and [n_documents].
        """
        key = (*scores.arm, *scores.sae)
        if key not in self._cells:
            return None
        if key not in self._moved:
            self._moved[key] = _moved(self._cells[key])
        moved = self._moved[key]
        rows = np.isin(moved.latent, latents)
        if column not in moved.influences or not rows.any():
            return None
        documents, n = moved.document[rows], self._n_documents
        place = np.searchsorted(latents, moved.latent[rows]) * n + documents
        sums = np.bincount(place, moved.influences[column][rows], len(latents) * n)
        windows = np.bincount(documents, minlength=n).astype(np.float64)
        return sums.reshape(-1, n) / len(latents), windows


def _documents(each: Floats, n_windows: Floats) -> Documents:
    return Documents(each.sum(axis=0), n_windows, float((each**2).sum()))


def _moved(cell: Units) -> Moved:
    judged, active = cell.column("probability")[1], cell.column("active")[0] == 1
    probability = cell.column("probability")[0]
    places, influences = [], list[dict[str, Floats]]()
    for first in np.unique(cell.ids, return_index=True)[1]:
        last = np.searchsorted(cell.ids, cell.ids[first], side="right")
        own = first + np.flatnonzero(judged[first:last])
        if active[own].any() and not active[own].all():
            places.append(own)
            influences.append(window_influences(active[own], probability[own]))
    if not places:
        return Moved(cell.ids[:0], cell.ids[:0], {})
    whole = np.concatenate(places)
    documents = cell.column("document")[0][whole].astype(np.int64)
    found = {name: np.concatenate([one[name] for one in influences]) for name in influences[0]}
    return Moved(cell.ids[whole], documents, found)
