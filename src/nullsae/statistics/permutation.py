"""Permutation tests of a contrast: whole draws or seeds are exchangeable under "no difference"."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from nullsae.core.randomness import numpy_generator
from nullsae.statistics.bootstrap import Arm, Floats, weighted_sums

# With fewer ways to divide whole draws or seeds, no p could be small.
FEWEST_WAYS = 20
# Statistics that differ by less than this share differ by rounding alone.
ROUNDING = 1e-12
Found = tuple[float | None, str | None]
"""A p-value, or None and why."""


class Permuter:
    """Divisions of draws or seeds into two arms: all where `n_resamples` are enough, else random
    ones.
    """

    def __init__(self, seed: int, n_resamples: int) -> None:
        """Keyed by the config's seed."""
        self.seed = seed
        self.n_resamples = n_resamples
        self._cached: dict[tuple[int, int], Floats] = {}

    def p_value(self, real: Arm, null: Arm) -> Found:
        """Return the two-sided p of the absolute difference of the metric, or None and why.

        Draws change arms whole, or, with one draw each, seeds do. The share of divisions with a
        difference as large; of random ones, 1 is added above and below for the division at hand
        (Davison & Hinkley 1997, eq. 4.11). One cell against one cell has no test: its units would
        speak of those two SAEs alone.
        """
        if real.level is None and null.level is None:
            return None, None
        level = "draw" if "draw" in (real.level, null.level) else "seed"
        # Seeds are no draws: against draws, an arm of one draw is one value.
        own, other = (
            np.array([arm.value()]) if (level, arm.level) == ("draw", "seed") else arm.member_values
            for arm in (real, null)
        )
        values, n_real, n_null = np.concatenate([own, other]), len(own), len(other)
        ways = math.comb(len(values), n_real)
        if ways < FEWEST_WAYS:
            few = f"{n_real} against {n_null} {level}s can be divided in {ways} ways only"
            return None, f"no permutation test: {few}, not {FEWEST_WAYS}"
        key = n_real, n_null
        if key not in self._cached:
            self._cached[key] = self._divisions(*key)
        is_real = self._cached[key]
        means = [weighted_sums(values, w) / w.sum(axis=1) for w in (is_real, 1 - is_real)]
        sizes = np.abs(means[1] - means[0])
        # The first division is the one at hand.
        as_large = sizes >= sizes[0] - ROUNDING * float(sizes.max())
        return float(as_large.mean()), None

    def _divisions(self, n_real: int, n_null: int) -> Floats:
        """1 for real, 0 for null, [n, n_real + n_null]; the one at hand comes first."""
        n_units = n_real + n_null
        at_hand = np.r_[np.ones(n_real), np.zeros(n_null)]
        if math.comb(n_units, n_real) > self.n_resamples:
            rng = numpy_generator(self.seed, "permutation", n_real, n_null)
            drawn = rng.permuted(np.tile(at_hand, (self.n_resamples, 1)), axis=1)
            return np.concatenate([at_hand[None], drawn])
        found = np.zeros((math.comb(n_units, n_real), n_units))
        for row, chosen in zip(found, combinations(range(n_units), n_real), strict=True):
            row[list(chosen)] = 1
        return found
