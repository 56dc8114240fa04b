"""Hierarchical bootstrap over draws, seeds and units, with percentile intervals.

An arm is one variant under one SAE recipe: its draws, in each draw its seeds, in each seed its
units (documents or latents). Its value is the mean over draws of the mean over seeds of
sum(numerator) / sum(denominator). A resample takes draws with replacement, within each drawn
draw its seeds, and within each drawn seed its units. A level with one member is fixed: with one
draw, an interval says nothing about what another draw would give.

With few members a percentile interval is too narrow: nominal 95% covers about 80% with 3 draws,
88% with 5, 92% with 10 or with 20 latents of one draw (`benchmarks/coverage.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Numbers drawn at a time: a few arrays of this size fit into a CPU's cache.
CHUNK_NUMBERS = 1 << 16


@dataclass(frozen=True)
class Cell:
    """The units of one draw and seed.

    `numerator` and `denominator` are float64 [n_units]; no denominator means 1 for each unit.
    """

    draw: int
    seed: int
    numerator: Floats
    denominator: Floats | None = None
    n_null: int = 0
    """Rows left out because their numerator is null."""

    @property
    def n_units(self) -> int:
        return len(self.numerator)

    @property
    def is_finite(self) -> bool:
        """Whether neither NaN nor an infinity is among the numbers."""
        parts = [self.numerator] if self.denominator is None else [self.numerator, self.denominator]
        return all(bool(np.isfinite(part).all()) for part in parts)

    def ratio(self) -> float:
        """Sum of numerators over sum of denominators; NaN where that is undefined."""
        below = self.n_units if self.denominator is None else self.denominator.sum()
        return float(self.numerator.sum() / below) if below != 0 else float("nan")

    def unit_values(self) -> Floats:
        """Each unit's own ratio, float64; units with denominator 0 have none and are left out."""
        if self.denominator is None:
            return self.numerator
        has_value = self.denominator != 0
        return np.asarray(self.numerator[has_value] / self.denominator[has_value])


@dataclass(frozen=True)
class Arm:
    """All cells of one variant. Cells without a unit have no value and are left out of means."""

    cells: tuple[Cell, ...]
    complement: bool = False
    """The value is 1 minus the mean of ratios."""
    units_are_shared: bool = False
    """The same units, at the same positions, in all cells of all arms (documents of a split)."""

    @cached_property
    def draws(self) -> tuple[tuple[Cell, ...], ...]:
        """Cells that have units, grouped by draw, sorted by (draw, seed)."""
        groups: dict[int, list[Cell]] = {}
        for cell in sorted(self.cells, key=lambda cell: (cell.draw, cell.seed)):
            if cell.n_units:
                groups.setdefault(cell.draw, []).append(cell)
        return tuple(tuple(group) for group in groups.values())

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
        counts = [cell.n_units for draw in self.draws for cell in draw]
        return max(counts, default=0) if self.units_are_shared else sum(counts)

    def value(self) -> float:
        """Mean over draws of the mean over seeds; NaN where that is undefined."""
        if not self.draws:
            return float("nan")
        means = [np.mean([cell.ratio() for cell in draw]) for draw in self.draws]
        return self._oriented(float(np.mean(means)))

    def unit_values(self) -> Floats:
        """Each unit's own value, of all draws and seeds, float64."""
        values = [cell.unit_values() for draw in self.draws for cell in draw]
        pooled = np.concatenate(values) if values else np.empty(0)
        return 1.0 - pooled if self.complement else pooled

    def _oriented(self, value: float) -> float:
        return 1.0 - value if self.complement else value


def resample(
    arm: Arm,
    n_resamples: int,
    generator: np.random.Generator,
    *,
    shared: np.random.Generator | None = None,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> Floats:
    """Values of the arm in `n_resamples` bootstrap resamples, float64 [n_resamples].

    Units that are shared are resampled once per resample, for all cells alike: two arms that
    get equal `shared` generators see the same documents in the same resample, so that their
    difference is a paired one. Units that are not shared are drawn anew for each drawn seed.
    A resample whose denominator sums to 0 gives NaN or an infinity.

    Args:
        arm: with at least one unit.
        n_resamples: number of resamples.
        generator: for the choice of draws, seeds and unshared units.
        shared: for the choice of shared units.
        chunk_numbers: bound on the size of temporary arrays; the result does not depend on it.

    Raises:
        ValueError: the arm has no unit, or its shared units come without `shared` or differ in
            number between cells.
    """
    cells = [cell for draw in arm.draws for cell in draw]
    if not cells:
        raise ValueError("an arm without units cannot be resampled")
    widest = max(cell.n_units for cell in cells)
    if arm.units_are_shared and (shared is None or min(c.n_units for c in cells) < widest):
        raise ValueError("shared units need a `shared` generator and equal numbers in all cells")

    n_seeds = np.array([len(draw) for draw in arm.draws])
    first_cell = np.cumsum(n_seeds) - n_seeds
    n_draws, most_seeds = len(n_seeds), int(n_seeds.max())
    # One stream per use: what each of them yields does not depend on the chunks.
    of_draws, of_seeds, *of_units = generator.spawn(2 + n_draws * most_seeds)
    is_ragged = np.arange(most_seeds) >= n_seeds[:, None]

    values = np.empty(n_resamples)
    n_rows = max(1, chunk_numbers // max(widest, n_draws * most_seeds))
    for start in range(0, n_resamples, n_rows):
        n = min(n_rows, n_resamples - start)
        draw = _below(of_draws.random((n, n_draws)), n_draws)
        seed = _below(of_seeds.random((n, n_draws, most_seeds)), n_seeds[draw][..., None])
        chosen = first_cell[draw][..., None] + seed  # [n, n_draws, most_seeds], index in cells
        if arm.units_are_shared:
            assert shared is not None
            units = _below(shared.random((n, widest)), widest)
            per_cell = np.stack([_ratios(cell, units) for cell in cells], axis=1)
            slots = np.take_along_axis(per_cell, chosen.reshape(n, -1), axis=1)
        else:
            flat = chosen.reshape(n, -1)
            drawn = [_draw_units(cells, flat[:, i], of_units[i]) for i in range(flat.shape[1])]
            slots = np.stack(drawn, axis=1)
        slots = slots.reshape(n, n_draws, most_seeds)
        # A draw with fewer seeds than the others fills fewer of its slots.
        slots = np.where(is_ragged[draw], 0.0, slots)
        values[start : start + n] = (slots.sum(axis=2) / n_seeds[draw]).mean(axis=1)
    return 1.0 - values if arm.complement else values


def percentile_interval(resamples: Floats, confidence: float) -> tuple[float, float]:
    """The percentile interval: quantiles (1 - confidence) / 2 and (1 + confidence) / 2.

    Efron & Tibshirani (1993), An Introduction to the Bootstrap, section 13.3; quantiles are
    interpolated linearly.
    """
    low, high = np.quantile(resamples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _below(uniform: Floats, bound: int | Ints) -> Ints:
    """Integers in [0, bound) from numbers in [0, 1); the product never rounds up to bound."""
    return (uniform * bound).astype(np.int64)


def _ratios(cell: Cell, units: Ints) -> Floats:
    """The cell's ratio in resamples given as unit positions [n, n_units]."""
    above = cell.numerator[units].sum(axis=1)
    if cell.denominator is None:
        return np.asarray(above / cell.n_units)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(above / cell.denominator[units].sum(axis=1))


def _draw_units(cells: list[Cell], chosen: Ints, stream: np.random.Generator) -> Floats:
    """Ratios [n] of resampled units of the chosen cells [n], as indices in `cells`."""
    sizes = np.array([cell.n_units for cell in cells])
    offsets = np.cumsum(sizes) - sizes
    widest = int(sizes.max())
    n_units = sizes[chosen][:, None]
    units = _below(stream.random((len(chosen), widest)), n_units) + offsets[chosen][:, None]

    def total(parts: list[Floats]) -> Floats:
        numbers = np.concatenate(parts)[units]
        if sizes.min() < widest:
            numbers = np.where(np.arange(widest) < n_units, numbers, 0.0)
        return np.asarray(numbers.sum(axis=1))

    above = total([cell.numerator for cell in cells])
    denominators = [cell.denominator for cell in cells if cell.denominator is not None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / (total(denominators) if denominators else n_units[:, 0])
