"""Permutation tests of a contrast, where its units are exchangeable under "no difference"."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np

from nullsae.core.randomness import numpy_generator
from nullsae.statistics.bootstrap import (
    Arm,
    ArmCell,
    Floats,
    grouped,
    of_sums,
    rank_correlations,
    weighted_sums,
)

# With fewer ways to divide whole draws or seeds, no p could be small.
FEWEST_WAYS = 20
# Statistics that differ by less than this share differ by rounding alone.
ROUNDING = 1e-12
CACHE_NUMBERS = 1 << 23
Found = tuple[float | None, str | None]
"""A p-value, or None and why."""


class Permuter:
    """Divisions of units into two arms: all where `n_resamples` are enough, else random ones."""

    def __init__(self, seed: int, n_resamples: int) -> None:
        """Keyed by the config's seed."""
        self.seed = seed
        self.n_resamples = n_resamples
        self._cached: dict[tuple[int, ...], Floats] = {}

    def p_value(self, trained: Arm, variant: Arm) -> Found:
        """Two-sided p of the absolute difference of the metric, or None and why.

        One cell against one cell: latents change arms; of documents, each is in both arms, and
        its two sets of numbers change places. More cells: draws change arms whole, or, with one
        draw each, seeds do. The share of divisions with a difference as large; of random ones, 1
        is added above and below for the division at hand (Davison & Hinkley 1997, eq. 4.11).
        """
        if trained.level is not None or variant.level is not None:
            return self._of_cells(trained, variant)
        one, other = trained.members[0][0], variant.members[0][0]
        if trained.units_are_shared:
            return self._of_documents(trained, one, other)
        return self._of_units(trained, one, other)

    def _of_cells(self, trained: Arm, variant: Arm) -> Found:
        level = "draw" if "draw" in (trained.level, variant.level) else "seed"
        # Seeds are no draws: against draws, an arm of one draw is one value.
        own, other = (
            np.array([arm.value()]) if (level, arm.level) == ("draw", "seed") else arm.member_values
            for arm in (trained, variant)
        )
        values, n_trained, n_variant = np.concatenate([own, other]), len(own), len(other)
        ways = math.comb(len(values), n_trained)
        if ways < FEWEST_WAYS:
            few = f"{n_trained} against {n_variant} {level}s can be divided in {ways} ways only"
            return None, f"no permutation test: {few}, not {FEWEST_WAYS}"
        is_trained = self._kept(self._divisions, n_trained, n_variant)
        means = [weighted_sums(values, w) / w.sum(axis=1) for w in (is_trained, 1 - is_trained)]
        return _share(means[1] - means[0])

    def _of_units(self, arm: Arm, one: ArmCell, other: ArmCell) -> Found:
        pairs = zip(one.columns, other.columns, strict=True)
        pooled = tuple(np.concatenate(pair) for pair in pairs)
        is_trained = self._kept(self._divisions, one.n_units, other.n_units)
        if arm.statistic == "rank_correlation":
            x, y = pooled
            values = [rank_correlations(x, y, w) for w in (is_trained, 1 - is_trained)]
        else:
            sums = [weighted_sums(column, is_trained) for column in pooled]
            rest = [column.sum() - part for column, part in zip(pooled, sums, strict=True)]
            both = ((sums, one.n_units), (rest, other.n_units))
            values = [of_sums(arm.statistic, part, n_units) for part, n_units in both]
        return _share(values[1] - values[0])

    def _of_documents(self, arm: Arm, one: ArmCell, other: ArmCell) -> Found:
        if one.n_units != other.n_units:
            return None, "no permutation test: the arms' documents differ in number"
        own, others = grouped(_without_scale(one.columns)), grouped(_without_scale(other.columns))
        is_swapped = self._kept(self._swaps, len(own[0]))
        sums, rest = [], []
        for first, second in zip(own, others, strict=True):
            moved = weighted_sums(second - first, is_swapped)
            sums.append(first.sum() + moved)
            rest.append(second.sum() - moved)
        before, after = (of_sums(arm.statistic, part, len(own[0])) for part in (sums, rest))
        return _share(after - before)

    def _kept(self, make: Callable[..., Floats], *key: int) -> Floats:
        if key not in self._cached:
            found = make(*key)
            while sum(f.size for f in self._cached.values()) > CACHE_NUMBERS:
                del self._cached[next(iter(self._cached))]
            self._cached[key] = found
        return self._cached[key]

    def _divisions(self, n_trained: int, n_variant: int) -> Floats:
        """1 for trained, 0 for variant, [n, n_trained + n_variant]; the one at hand comes first."""
        n_units = n_trained + n_variant
        at_hand = np.r_[np.ones(n_trained), np.zeros(n_variant)]
        if math.comb(n_units, n_trained) > self.n_resamples:
            rng = numpy_generator(self.seed, "permutation", n_trained, n_variant)
            drawn = rng.permuted(np.tile(at_hand, (self.n_resamples, 1)), axis=1)
            return np.concatenate([at_hand[None], drawn])
        found = np.zeros((math.comb(n_units, n_trained), n_units))
        for row, chosen in zip(found, combinations(range(n_units), n_trained), strict=True):
            row[list(chosen)] = 1
        return found

    def _swaps(self, n_units: int) -> Floats:
        """1 where a document's numbers change places, [n, n_units]; the first row is 0."""
        if 2**n_units <= self.n_resamples:
            bits = np.arange(2**n_units)[:, None] >> np.arange(n_units)
            return (bits & 1).astype(np.float64)
        rng = numpy_generator(self.seed, "permutation", n_units)
        drawn = rng.integers(0, 2, size=(self.n_resamples, n_units))
        return np.concatenate([np.zeros((1, n_units)), drawn])


def _without_scale(columns: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """Each ratio's two columns over the denominator's sum.

    The arms' activations may differ in scale, which is not what is tested, and without this the
    documents of the larger arm would decide both values.
    """
    totals = (below.sum() for below in columns[1::2] for _ in range(2))
    return tuple(column / total for column, total in zip(columns, totals, strict=True))


def _share(differences: Floats) -> Found:
    """Share of the differences that are as large as the first one, which is the one at hand."""
    if not np.isfinite(differences).all():
        return None, "no permutation test: the metric is undefined in some permutations"
    sizes = np.abs(differences)
    as_large = sizes >= sizes[0] - ROUNDING * float(sizes.max())
    return float(as_large.mean()), None
