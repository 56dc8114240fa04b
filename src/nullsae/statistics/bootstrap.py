"""Arms of a comparison, and the bootstrap of their units.

An arm is one variant under one SAE recipe: its draws, in each draw its seeds, in each seed its
units (documents or latents). Its value is the mean over draws of the mean over seeds of each
cell's statistic.

What is resampled: nested levels once, at the top. Where there are several draws, whole draws vary
as their seeds and latents let them, and to resample those again would count them twice (Davison &
Hinkley 1997, section 3.8); so draws are resampled, or the seeds of one draw, or the units of one
cell. Of whole draws the bootstrap standard error has a closed form and is taken so
(`nullsae.statistics.spread`). Documents are not nested: each is the same in all cells, so they are
resampled beside the draws, once per resample for all cells and arms alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nullsae.config.metrics import Form
from nullsae.core.randomness import numpy_generator

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Numbers drawn at a time, and numbers kept between arms.
CHUNK_NUMBERS = 1 << 20
CACHE_NUMBERS = 1 << 24
# As many fit into a CPU's own cache.
CACHED_NUMBERS = 1 << 18
# More units are resampled in groups of equal size, in which sums do not lose any of their variance.
MOST_UNITS = 2000


class Documents(NamedTuple):
    """The part of documents in a mean over latents whose scores come from judged windows."""

    effect: Floats
    """How much each document of the split moves the mean, [n_documents]; sums to 0."""
    n_windows: Floats
    """Judged windows of each, [n_documents]."""
    held: float
    """The part of the effects' summed squares that the scatter of latents, seeds or draws holds."""


@dataclass(frozen=True)
class ArmCell:
    """The units of one draw and seed.

    `columns` are float64 [n_units] each, as the arm's statistic wants them: `mean` one; `ratio`
    numerator and denominator; `relative` those of the cell and those of each of its floors;
    `rank_correlation` two.
    """

    draw: int
    seed: int
    columns: tuple[Floats, ...]
    n_null: int = 0
    """Rows left out because a column is null."""
    reason: str | None = None
    """Why the cell has no value, though it may have units."""
    strata: Ints | None = None
    """[n_units], the half-decade of each latent's firing share."""
    units: Ints | None = None
    """[n_units], which documents or latents they are."""
    documents: Documents | None = None
    """Where units are scores of judged windows."""

    @property
    def n_units(self) -> int:
        return len(self.columns[0])

    @property
    def is_finite(self) -> bool:
        """Whether neither NaN nor an infinity is among the numbers."""
        return all(bool(np.isfinite(part).all()) for part in self.columns)


@dataclass(frozen=True)
class Arm:
    """All cells of one variant. Cells without a unit have no value and are left out of means."""

    cells: tuple[ArmCell, ...]
    statistic: Form = "mean"
    complement: bool = False
    """The value is 1 minus the mean of the cells' statistics."""
    units_are_shared: bool = False
    """The same units, at the same positions, in all cells of all arms (documents of a split)."""

    @cached_property
    def with_units(self) -> tuple[ArmCell, ...]:
        """Cells that have units, sorted by (draw, seed)."""
        found = (cell for cell in self.cells if cell.n_units)
        return tuple(sorted(found, key=lambda cell: (cell.draw, cell.seed)))

    @cached_property
    def draws(self) -> tuple[tuple[ArmCell, ...], ...]:
        """The same, grouped by draw."""
        return tuple(tuple(group) for _, group in groupby(self.with_units, lambda c: c.draw))

    @property
    def members(self) -> tuple[tuple[ArmCell, ...], ...]:
        """The parts to resample whole: draws, or the seeds of the only draw."""
        draws = self.draws
        return tuple((cell,) for cell in draws[0]) if len(draws) == 1 else draws

    @property
    def level(self) -> Literal["draw", "seed"] | None:
        """The level of `members`; None if there is one, so that units alone are resampled."""
        return None if len(self.members) < 2 else "draw" if self.n_draws > 1 else "seed"

    @property
    def n_draws(self) -> int:
        return len(self.draws)

    @property
    def n_seeds(self) -> int:
        """Seeds per draw; the smallest number where draws differ."""
        return min((len(draw) for draw in self.draws), default=0)

    @property
    def n_units(self) -> int:
        """Units that carry information: distinct ones if shared, else those of all cells."""
        counts = [cell.n_units for cell in self.with_units]
        return max(counts, default=0) if self.units_are_shared else sum(counts)

    @property
    def units_agree(self) -> bool:
        """Whether all cells that have units have as many."""
        return len({cell.n_units for cell in self.with_units}) < 2

    @cached_property
    def member_values(self) -> Floats:
        """Value of each of `members`, float64 [n_members]; NaN where undefined."""
        values = [
            np.mean([weighted(self.statistic, c.columns, np.ones((1, c.n_units))) for c in member])
            for member in self.members
        ]
        return self.oriented(np.array(values))

    def value(self) -> float:
        """Mean over draws of the mean over seeds; NaN where that is undefined."""
        return float(self.member_values.mean()) if self.members else float("nan")

    def unit_values(self) -> Floats | None:
        """Each unit's own value, of all draws and seeds, float64; None if units have none."""
        if self.statistic == "rank_correlation":
            return None
        found = [unit_statistics(cell) for cell in self.with_units]
        return self.oriented(np.concatenate(found)) if found else np.empty(0)

    def oriented(self, values: Floats) -> Floats:
        """The arm's values from its cells' statistics."""
        return 1.0 - values if self.complement else values


def unit_statistics(cell: ArmCell) -> Floats:
    """Each unit's own ratio; units with a denominator of 0 have none and are left out."""
    if len(cell.columns) == 1:
        return cell.columns[0]
    # A unit by itself is a sum over one.
    values = of_sums("ratio" if len(cell.columns) == 2 else "relative", cell.columns, 1)
    return values[np.isfinite(values)]


def weighted(statistic: Form, columns: tuple[Floats, ...], weights: Floats) -> Floats:
    """A cell's statistic with each unit counted so often, float64 [n_resamples].

    `mean`: sum / count; `ratio`: ratio of sums; `relative`: that over the smallest
    of the floors'; `rank_correlation`: Spearman's, ties at their mean rank. Columns are as in
    `ArmCell`, [n_units] each, and weights whole numbers, [n_resamples, n_units].
    """
    if statistic == "rank_correlation":
        return rank_correlations(columns[0], columns[1], weights)
    sums = [weighted_sums(column, weights) for column in columns]
    return of_sums(statistic, sums, weights.sum(axis=1))


def weighted_sums(column: Floats, weights: Floats) -> Floats:
    """Sum over units in each row of weights, float64 [n_resamples]."""
    # einsum, not a matrix product: the bits of BLAS depend on its number of threads.
    return np.asarray(np.einsum("rn,n->r", weights, column))


def of_sums(statistic: Form, sums: Sequence[Floats], n_units: Floats | int) -> Floats:
    """A statistic other than `rank_correlation` from its columns' sums over `n_units` units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if statistic == "mean":
            return np.asarray(sums[0] / n_units)
        own = sums[0] / sums[1]
        floors = [above / below for above, below in zip(sums[2::2], sums[3::2], strict=True)]
        return np.asarray(own if statistic == "ratio" else own / np.min(floors, axis=0))


def rank_correlations(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's correlation in each row of weights; NaN where a column does not vary."""
    n_rows = max(1, CACHED_NUMBERS // len(x))
    found = np.empty(len(weights))
    for start in range(0, len(weights), n_rows):
        part = np.ascontiguousarray(weights[start : start + n_rows].T)
        middle = (part.sum(axis=0) + 1) / 2
        off = [_ranks(column, part) - middle for column in (x, y)]
        heavy = [part * one for one in off]
        xy, xx, yy = (
            np.einsum("nr,nr->r", one, other)
            for one, other in ((heavy[0], off[1]), (heavy[0], off[0]), (heavy[1], off[1]))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found[start : start + n_rows] = xy / np.sqrt(xx * yy)
    return found


def _ranks(column: Floats, weights: Floats) -> Floats:
    """Mean ranks of a column's values where each counts by its weight, [n_units, n_resamples]."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right")
    below = np.zeros((len(column) + 1, weights.shape[1]))
    for i, unit in enumerate(order):  # np.cumsum along this axis is 10 times slower
        np.add(below[i], weights[unit], out=below[i + 1])
    ranks = np.empty_like(weights)
    ranks[order] = (below[first] + below[last] + 1) / 2
    return ranks


def grouped(columns: tuple[Floats, ...], most: int = MOST_UNITS) -> tuple[Floats, ...]:
    """Sum every `most`-th unit if there are more, so that `most` are left.

    Units are independent, so sums of groups have the variance of the sums of their units.
    """
    n_units = len(columns[0])
    if n_units <= most:
        return columns
    group = np.arange(n_units) % most
    sums = (np.bincount(group, weights=column, minlength=most) for column in columns)
    return tuple(np.asarray(column, dtype=np.float64) for column in sums)


class Resampler:
    """Counts of each unit in each resample: the same for all arms with as many units.

    So documents are paired between arms. Arms of other units share these numbers without harm:
    their variances are computed one by one.
    """

    def __init__(self, seed: int, n_resamples: int, *, cache_numbers: int = CACHE_NUMBERS) -> None:
        """Keyed by the config's seed; the result does not depend on `cache_numbers`."""
        self.seed = seed
        self.n_resamples = n_resamples
        self._cache_numbers = cache_numbers
        self._cached: dict[int, list[Floats]] = {}

    def counts(self, n_units: int) -> Iterator[Floats]:
        """Counts, float64 [n, n_units] with rows that sum to `n_units`, `n_resamples` in all."""
        if n_units in self._cached:
            yield from self._cached[n_units]
            return
        n_numbers = self.n_resamples * n_units
        kept: list[Floats] | None = [] if n_numbers <= self._cache_numbers else None
        rng = numpy_generator(self.seed, "bootstrap", n_units)
        n_rows = max(1, CHUNK_NUMBERS // n_units)
        for start in range(0, self.n_resamples, n_rows):
            n = min(n_rows, self.n_resamples - start)
            drawn = rng.integers(0, n_units, size=(n, n_units)) + n_units * np.arange(n)[:, None]
            flat = np.bincount(drawn.ravel(), minlength=n * n_units)
            counts: Floats = flat.reshape(n, n_units).astype(np.float64)
            if kept is not None:
                kept.append(counts)
            yield counts
        if kept is not None:
            while self.n_resamples * sum(self._cached) + n_numbers > self._cache_numbers:
                del self._cached[next(iter(self._cached))]
            self._cached[n_units] = kept

    def members(self, arm: Arm) -> Floats:
        """Values of the arm's members in each resample of the units, [n_resamples, n_members].

        Every cell is resampled by the same counts. A resample whose denominator sums to 0 gives
        NaN or an infinity.

        Raises:
            ValueError: the arm has no unit, or its cells differ in their number.
        """
        if not arm.members or not arm.units_agree:
            raise ValueError("resampling units needs some, and as many in all cells")
        as_units = arm.statistic in ("mean", "rank_correlation")
        parts = [
            [cell.columns if as_units else grouped(cell.columns) for cell in member]
            for member in arm.members
        ]
        n_units = len(parts[0][0][0])
        means = [
            [np.mean([weighted(arm.statistic, c, w) for c in own], axis=0) for own in parts]
            for w in self.counts(n_units)
        ]
        return arm.oriented(np.concatenate([np.stack(values, axis=1) for values in means]))
