"""Comparison at equal firing rates: the same number of latents per half-decade in every cell.

A scorer finds frequent latents easier or harder than rare ones, and variants differ in how often
their latents fire. Drawing n_b latents of each bin b from every cell, again and again, has the
expectation sum_b n_b mean_b / sum_b n_b, which is computed as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nullsae.statistics.bootstrap import Arm, ArmCell, Floats, Ints
from nullsae.statistics.spread import Component, mean_component, mean_of_units

# A bin with a single latent in some cell says nothing about its spread there.
FEWEST = 2


class Matched(NamedTuple):
    """An arm's value at the common distribution of firing rates."""

    value: float
    components: tuple[Component, ...]


def half_decades(firing_shares: Floats) -> Ints:
    """The bin of each latent: floor(2 log10(firing share)), int64; shares are positive."""
    return np.asarray(np.floor(2 * np.log10(firing_shares)), dtype=np.int64)


def common_bins(arms: Iterable[Arm]) -> dict[int, int]:
    """Per bin, how many latents are compared: the smallest number in any cell, sorted by bin.

    Cells without a latent are left out, as in plain means. A bin counts where every cell has two
    latents at least.
    """
    cells = [cell for arm in arms for cell in arm.with_units]
    counts = [Counter([] if cell.strata is None else cell.strata.tolist()) for cell in cells]
    bins = sorted(counts[0]) if counts else []
    smallest = {b: min(count[b] for count in counts) for b in bins}
    return {b: n for b, n in smallest.items() if n >= FEWEST}


def matched(arm: Arm, bins: Mapping[int, int]) -> Matched:
    """Value and error of an arm of means over latents at the weights n_b / sum n_b of bins.

    Every cell that has latents has some in each bin. Within one cell the bootstrap draws latents
    within bins. Of a bin's mean its variance is known: that of its latents over their number,
    (n - 1) / n made up for as everywhere; so is its third moment.
    """
    total = sum(bins.values())
    weights = {b: n / total for b, n in bins.items()}

    def bin_units(cell: ArmCell, b: int) -> Floats:
        assert cell.strata is not None
        return np.asarray(cell.columns[0][cell.strata == b])

    def cell_value(cell: ArmCell) -> float:
        return sum(w * float(bin_units(cell, b).mean()) for b, w in weights.items())

    members = np.array([np.mean([cell_value(c) for c in member]) for member in arm.members])
    if arm.level is not None:
        return Matched(float(members.mean()), (mean_component(members),))
    (cell,) = arm.members[0]
    parts = []
    for b, weight in weights.items():
        parts.append(mean_of_units(bin_units(cell, b)).scaled(weight))
    return Matched(float(members.mean()), tuple(parts))
