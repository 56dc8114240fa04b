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

    def p_value(self, trained: Arm, variant: Arm) -> Found:
        """Two-sided p of the absolute difference of the metric, or None and why.

        Draws change arms whole, or, with one draw each, seeds do. The share of divisions with a
        difference as large; of random ones, 1 is added above and below for the division at hand
        (Davison & Hinkley 1997, eq. 4.11). One cell against one cell has no test: its units would
        speak of those two SAEs alone.
        """
        if trained.level is None and variant.level is None:
            return None, None
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
        key = n_trained, n_variant
        if key not in self._cached:
            self._cached[key] = self._divisions(*key)
        is_trained = self._cached[key]
        means = [weighted_sums(values, w) / w.sum(axis=1) for w in (is_trained, 1 - is_trained)]
        sizes = np.abs(means[1] - means[0])
        # The first division is the one at hand.
        as_large = sizes >= sizes[0] - ROUNDING * float(sizes.max())
        return float(as_large.mean()), None

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
