"""Arms of a comparison, and the bootstrap of their units.

An arm is one variant under one SAE recipe. It has draws, each draw has seeds, each seed has units
(documents or latents). Its value is the mean over draws of the mean over seeds of each cell's
statistic.

Only the top one of the nested levels is resampled: the spread of whole draws already includes that
of their seeds and latents, and resampling these too would count it twice (Davison & Hinkley 1997,
section 3.8). So the bootstrap resamples draws, or the seeds of a single draw, or the units of a
single cell. For whole draws its standard error has a closed form, which is used instead
(`nullsae.statistics.spread`). Documents are not nested: all cells share them, so they are
resampled alongside the draws, once per resample for all cells and arms.
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

# Numbers drawn at a time, and numbers cached between arms.
CHUNK_NUMBERS = 1 << 20
CACHE_NUMBERS = 1 << 24
# As many as fit into a CPU's cache.
CACHED_NUMBERS = 1 << 18
# Above this number, units are resampled in groups of equal size, whose sums have the same variance.
MOST_UNITS = 2000


class Documents(NamedTuple):
    """What documents contribute to a mean over latents whose scores come from judged windows."""

    effect: Floats
    """How much each document of the split moves the mean, [n_documents]; sums to 0."""
    n_windows: Floats
    """Judged windows in each, [n_documents]."""
    held: float
    """Part of the effects' summed squares that the spread of latents, seeds or draws includes."""


@dataclass(frozen=True)
class ArmCell:
    """The units of one draw and seed.

    `columns` are float64 [n_units] each. The arm's statistic sets their number: one for `mean`,
    numerator and denominator for `ratio`, those of the cell and of each of its floors for
    `relative`, two for `rank_correlation`.
    """

    draw: int
    seed: int
    columns: tuple[Floats, ...]
    n_null: int = 0
    """Rows left out because a column is null."""
    reason: str | None = None
    """Why the cell has no value, even if it has units."""
    strata: Ints | None = None
    """[n_units], the half-decade of each latent's firing share."""
    units: Ints | None = None
    """[n_units], the documents or latents that they are."""
    documents: Documents | None = None
    """Set if units are scores of judged windows."""

    @property
    def n_units(self) -> int:
        return len(self.columns[0])

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        return all(bool(np.isfinite(part).all()) for part in self.columns)


@dataclass(frozen=True)
class Arm:
    """All cells of one variant. Cells without units have no value and are left out of means."""

    cells: tuple[ArmCell, ...]
    statistic: Form = "mean"
    complement: bool = False
    """The value is 1 minus the mean of the cells' statistics."""
    units_are_shared: bool = False
    """Whether all cells of all arms have the same units at the same positions (documents)."""

    @cached_property
    def with_units(self) -> tuple[ArmCell, ...]:
        """Cells that have units, sorted by (draw, seed)."""
        found = (cell for cell in self.cells if cell.n_units)
        return tuple(sorted(found, key=lambda cell: (cell.draw, cell.seed)))

    @cached_property
    def draws(self) -> tuple[tuple[ArmCell, ...], ...]:
        """The cells of `with_units`, grouped by draw."""
        return tuple(tuple(group) for _, group in groupby(self.with_units, lambda c: c.draw))

    @property
    def members(self) -> tuple[tuple[ArmCell, ...], ...]:
        """The parts to resample whole: draws, or the seeds of the only draw."""
        draws = self.draws
        return tuple((cell,) for cell in draws[0]) if len(draws) == 1 else draws

    @property
    def level(self) -> Literal["draw", "seed"] | None:
        """The level of `members`; None for a single member, where only units are resampled."""
        return None if len(self.members) < 2 else "draw" if self.n_draws > 1 else "seed"

    @property
    def n_draws(self) -> int:
        return len(self.draws)

    @property
    def n_seeds(self) -> int:
        """Seeds per draw; the smallest number if draws differ."""
        return min((len(draw) for draw in self.draws), default=0)

    @property
    def n_units(self) -> int:
        """Independent units: distinct ones if shared, else those of all cells together."""
        counts = [cell.n_units for cell in self.with_units]
        return max(counts, default=0) if self.units_are_shared else sum(counts)

    @property
    def units_agree(self) -> bool:
        """Whether all cells with units have the same number."""
        return len({cell.n_units for cell in self.with_units}) < 2

    @cached_property
    def member_values(self) -> Floats:
        """Value of each of `members`, float64 [n_members]; NaN if undefined."""
        values = [
            np.mean([weighted(self.statistic, c.columns, np.ones((1, c.n_units))) for c in member])
            for member in self.members
        ]
        return self.oriented(np.array(values))

    def value(self) -> float:
        """Mean over draws of the mean over seeds; NaN if undefined."""
        return float(self.member_values.mean()) if self.members else float("nan")

    def unit_values(self) -> Floats | None:
        """Value of every single unit of all draws and seeds, float64; None if units have none."""
        if self.statistic == "rank_correlation":
            return None
        found = [unit_statistics(cell) for cell in self.with_units]
        return self.oriented(np.concatenate(found)) if found else np.empty(0)

    def oriented(self, values: Floats) -> Floats:
        """Turn statistics of cells into values of the arm."""
        return 1.0 - values if self.complement else values


def unit_statistics(cell: ArmCell) -> Floats:
    """Return the ratio of each unit; units with a denominator of 0 are left out."""
    if len(cell.columns) == 1:
        return cell.columns[0]
    # A single unit is a sum over one.
    values = of_sums("ratio" if len(cell.columns) == 2 else "relative", cell.columns, 1)
    return values[np.isfinite(values)]


def weighted(statistic: Form, columns: tuple[Floats, ...], weights: Floats) -> Floats:
    """Compute a cell's statistic with each unit counted by its weight, float64 [n_resamples].

    `mean`: sum / count; `ratio`: ratio of sums; `relative`: this ratio over the smallest of those
    of the floors; `rank_correlation`: Spearman's, ties at their mean rank. Columns are those of
    `ArmCell`, [n_units] each; weights are whole numbers, [n_resamples, n_units].
    """
    if statistic == "rank_correlation":
        return rank_correlations(columns[0], columns[1], weights)
    sums = [weighted_sums(column, weights) for column in columns]
    return of_sums(statistic, sums, weights.sum(axis=1))


def weighted_sums(column: Floats, weights: Floats) -> Floats:
    """Sum over units for each row of weights, float64 [n_resamples]."""
    # einsum, not a matrix product: BLAS results depend on the number of threads.
    return np.asarray(np.einsum("rn,n->r", weights, column))


def of_sums(statistic: Form, sums: Sequence[Floats], n_units: Floats | int) -> Floats:
    """Compute a statistic other than `rank_correlation` from sums of columns over `n_units`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if statistic == "mean":
            return np.asarray(sums[0] / n_units)
        own = sums[0] / sums[1]
        floors = [above / below for above, below in zip(sums[2::2], sums[3::2], strict=True)]
        return np.asarray(own if statistic == "ratio" else own / np.min(floors, axis=0))


def rank_correlations(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Compute Spearman's correlation for each row of weights; NaN if a column is constant."""
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
    """Return mean ranks of a column's values, counted by weight, [n_units, n_resamples]."""
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
    """Sum every `most`-th unit if there are more than `most`, so that `most` groups remain.

    Units are independent, so sums of groups have the variance of the sums of their units.
    """
    n_units = len(columns[0])
    if n_units <= most:
        return columns
    group = np.arange(n_units) % most
    sums = (np.bincount(group, weights=column, minlength=most) for column in columns)
    return tuple(np.asarray(column, dtype=np.float64) for column in sums)


class Resampler:
    """Counts of each unit in each resample, the same for all arms with this number of units.

    This pairs documents between arms. Arms with other units may share the counts, because their
    variances are computed separately.
    """

    def __init__(self, seed: int, n_resamples: int, *, cache_numbers: int = CACHE_NUMBERS) -> None:
        """Seed with the config's seed; results do not depend on `cache_numbers`."""
        self.seed = seed
        self.n_resamples = n_resamples
        self._cache_numbers = cache_numbers
        self._cached: dict[int, list[Floats]] = {}

    def counts(self, n_units: int) -> Iterator[Floats]:
        """Yield counts, float64 [n, n_units], rows summing to `n_units`, `n_resamples` in total."""
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
        """Compute the arm's members in each resample of the units, [n_resamples, n_members].

        All cells are resampled by the same counts. A denominator that sums to 0 in a resample gives
        NaN or an infinity.

        Raises:
            ValueError: the arm has no units, or its cells differ in their number.
        """
        if not arm.members or not arm.units_agree:
            raise ValueError("resampling needs units, the same number in all cells")
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
