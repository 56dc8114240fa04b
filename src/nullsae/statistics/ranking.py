"""Which latents beat placebo: empirical p-values against latents of nulls, and q-values.

Under the null hypothesis, a latent and the null latents in its half-decade of the firing share are
exchangeable. Then P(p <= x) <= x for every x, with equality at x = k / (1 + n) without ties. Such
p-values are conformal: they share the null latents they are compared with, and
Benjamini-Hochberg still controls the false-discovery rate (Bates, Candès, Lei, Romano & Sesia 2023,
Annals of Statistics 51, 149, theorem 2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from nullsae.config.metrics import Direction
from nullsae.statistics.bootstrap import Floats, Ints

# Latents with q up to this value beat placebo: their false-discovery rate.
LEVEL = 0.05


class Latents(NamedTuple):
    """Latents with a value: their numbers, values and half-decades of the firing share."""

    latent: Ints
    value: Floats
    bin: Ints


def fewest_nulls(direction: Direction) -> int:
    """Return the least number of null latents for a p of `LEVEL`: 19, or 39 for both sides."""
    sides = 1 if direction else 2
    return round(sides / LEVEL) - 1


def n_nulls(own: Latents, null: Latents) -> Ints:
    """Count the null latents in the bin of each latent, int64 [n_latents]."""
    bins, sizes = np.unique(null.bin, return_counts=True)
    place = np.searchsorted(bins, own.bin)
    padded_bins, padded = np.append(bins, np.iinfo(np.int64).max), np.append(sizes, 0)
    return np.where(padded_bins[place] == own.bin, padded[place], 0).astype(np.int64)


def p_values(own: Latents, null: Latents, direction: Direction) -> Floats:
    """Compute the empirical p of each latent, float64 [n_latents]; NaN with too few null latents.

    (1 + number of null latents of the bin that are at least as extreme) / (1 + their number). For
    direction 0, twice the smaller of the two tails, at most 1. Ties count as extreme.

    Args:
        own: the latents to rank.
        null: the latents of all draws to compare them with.
        direction: 1 if large values are extreme, -1 if small ones are, 0 for both.
    """
    p = np.full(len(own.value), np.nan)
    for b in np.unique(own.bin):
        here = own.bin == b
        among = np.sort(null.value[null.bin == b])
        n = len(among)
        if n < fewest_nulls(direction):
            continue
        above = (1 + n - np.searchsorted(among, own.value[here], side="left")) / (1 + n)
        below = (1 + np.searchsorted(among, own.value[here], side="right")) / (1 + n)
        both = np.minimum(1.0, 2 * np.minimum(above, below))
        p[here] = {1: above, -1: below, 0: both}[direction]
    return p


def q_values(p: Floats) -> Floats:
    """Adjust p-values by Benjamini-Hochberg, ignoring NaN, float64 like `p`."""
    q = np.full(len(p), np.nan)
    has = ~np.isnan(p)
    q[has] = stats.false_discovery_control(p[has], method="bh")
    return q


def ranking(own: Latents, q: Floats, direction: Direction | None) -> Ints:
    """Order latents, int64 [n_latents]: by q, NaN last, then the most extreme value first.

    Without a single extreme side, larger values come first. Equal values stay in index order.
    """
    return np.lexsort((own.latent, -(direction or 1) * own.value, q))
