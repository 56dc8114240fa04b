"""Comparison at equal firing rates: the same number of latents per half-decade in every cell.

Scores depend on how often a latent fires, and variants differ in how often their latents fire.
Drawing n_b latents of each bin b from every cell, again and again, has the expectation
sum_b n_b mean_b / sum_b n_b, which is computed directly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nullsae.statistics.bootstrap import Arm, ArmCell, Floats, Ints
from nullsae.statistics.spread import (
    Component,
    SeedVariance,
    mean_component,
    mean_of_units,
    pooled_seeds,
    seed_component,
    summed,
)

# A single latent in a bin says nothing about the spread there.
FEWEST = 2


class Matched(NamedTuple):
    """An arm's value at the common distribution of firing rates."""

    value: float
    components: tuple[Component, ...]


class Bins(dict[int, int]):
    """How many latents are compared in each bin."""

    seeds: SeedVariance | None = None
    """Seed variance of values at these numbers, pooled over all draws with several seeds."""


def half_decades(firing_shares: Floats) -> Ints:
    """Return the bin of each latent: floor(2 log10(firing share)), int64; shares are positive."""
    return np.asarray(np.floor(2 * np.log10(firing_shares)), dtype=np.int64)


def common_bins(arms: Sequence[Arm]) -> Bins:
    """Count the latents to compare per bin: the smallest number in any cell, sorted by bin.

    Cells without latents are left out, as in plain means. A bin counts if every cell has at least
    two latents in it.
    """
    cells = [cell for arm in arms for cell in arm.with_units]
    counts = [Counter([] if cell.strata is None else cell.strata.tolist()) for cell in cells]
    bins = sorted(counts[0]) if counts else []
    smallest = {b: min(count[b] for count in counts) for b in bins}
    found = Bins({b: n for b, n in smallest.items() if n >= FEWEST})
    draws = [draw for arm in arms for draw in arm.draws if found and len(draw) > 1]
    found.seeds = pooled_seeds(
        (
            np.array([_mean_of_bins(cell, found) for cell in draw]),
            summed(_latents_apart(draw, found)).variance,
        )
        for draw in draws
    )
    return found


def matched(arm: Arm, bins: Mapping[int, int]) -> Matched:
    """Estimate an arm of means over latents with the weights n_b / sum n_b of the bins.

    Every cell that has latents has some in each bin. Within one cell the bootstrap draws latents
    within bins. The variance of a bin's mean is known: the variance of its latents over their
    number, corrected for (n - 1) / n as everywhere. So is its third moment. Seed variance is that
    of `Bins`.
    """
    values = [np.array([_mean_of_bins(c, bins) for c in draw]) for draw in arm.draws]
    value = float(np.mean([own.mean() for own in values]))
    if arm.n_draws > 1:
        return Matched(value, (mean_component(np.array([own.mean() for own in values])),))
    apart = _latents_apart(arm.draws[0], bins)
    if isinstance(bins, Bins) and bins.seeds is not None:
        return Matched(value, (seed_component(bins.seeds, arm.n_seeds, summed(apart)),))
    if arm.level is not None:
        return Matched(value, (mean_component(values[0]),))
    return Matched(value, tuple(apart))


def _bin_units(cell: ArmCell, b: int) -> Floats:
    assert cell.strata is not None
    return np.asarray(cell.columns[0][cell.strata == b])


def _mean_of_bins(cell: ArmCell, bins: Mapping[int, int]) -> float:
    total = sum(bins.values())
    return sum(n / total * float(_bin_units(cell, b).mean()) for b, n in bins.items())


def _latents_apart(draw: Sequence[ArmCell], bins: Mapping[int, int]) -> list[Component]:
    """List the parts of the latents of each bin and seed in the mean of a draw's seeds."""
    total = sum(bins.values()) * len(draw)
    return [
        mean_of_units(_bin_units(cell, b)).scaled(n / total)
        for cell in draw
        for b, n in bins.items()
    ]
