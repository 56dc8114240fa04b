"""Permutation tests of a contrast: whole draws or seeds are exchangeable under "no difference"."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from nullsae.core.randomness import numpy_generator
from nullsae.statistics.bootstrap import Arm, Floats, weighted_sums

# With fewer ways to divide draws or seeds, p cannot be small.
FEWEST_WAYS = 20
# Statistics that differ by less than this share differ only by rounding.
ROUNDING = 1e-12
Found = tuple[float | None, str | None]
"""A p-value, or None and the reason."""


class Permuter:
    """Divisions of draws or seeds into two arms: all of them if at most `n_resamples`, else a
    random sample.
    """

    def __init__(self, seed: int, n_resamples: int) -> None:
        """Seed with the config's seed."""
        self.seed = seed
        self.n_resamples = n_resamples
        self._cached: dict[tuple[int, int], Floats] = {}

    def p_value(self, real: Arm, null: Arm) -> Found:
        """Return the two-sided p of the metric's absolute difference, or None and the reason.

        Whole draws swap arms or, with one draw each, seeds do. P is the share of divisions with a
        difference at least as large; for random divisions, the observed one is added to numerator
        and denominator (Davison & Hinkley 1997, eq. 4.11). One cell against one cell has no test,
        because its units describe only those two SAEs.
        """
        if real.level is None and null.level is None:
            return None, None
        level = "draw" if "draw" in (real.level, null.level) else "seed"
        # Seeds are not draws: compared with draws, an arm of one draw is one value.
        own, other = (
            np.array([arm.value()]) if (level, arm.level) == ("draw", "seed") else arm.member_values
            for arm in (real, null)
        )
        values, n_real, n_null = np.concatenate([own, other]), len(own), len(other)
        ways = math.comb(len(values), n_real)
        if ways < FEWEST_WAYS:
            few = f"{n_real} and {n_null} {level}s can be divided in only {ways} ways"
            return None, f"no permutation test: {few}, fewer than {FEWEST_WAYS}"
        key = n_real, n_null
        if key not in self._cached:
            self._cached[key] = self._divisions(*key)
        is_real = self._cached[key]
        means = [weighted_sums(values, w) / w.sum(axis=1) for w in (is_real, 1 - is_real)]
        sizes = np.abs(means[1] - means[0])
        # The first division is the observed one.
        as_large = sizes >= sizes[0] - ROUNDING * float(sizes.max())
        return float(as_large.mean()), None

    def _divisions(self, n_real: int, n_null: int) -> Floats:
        """Return divisions, 1 for real, 0 for null, [n, n_real + n_null]; the first is observed."""
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
