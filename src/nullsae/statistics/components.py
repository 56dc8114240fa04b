"""Variance components of an arm: what its seeds, latents and documents contribute.

Seed variance is pooled over all draws and arms of a comparison (one metric, site and SAE recipe),
because three seeds of one arm tell little of it. What differs between arms, how latents scatter
and how many there are, is each arm's own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nullsae.statistics.bootstrap import MOST_UNITS, Arm, Floats, Resampler
from nullsae.statistics.spread import (
    Component,
    SeedVariance,
    mean_of_units,
    pooled_seeds,
    summed,
    unit_component,
)


def interaction_variance(members: Floats) -> float:
    """The variance of the mean of members, [n_resamples, n_members], that no two of them share.

    Members that see the same units have their own part in each resample: what is left when the
    mean of all is taken away, so that a unit that is hard for all of them does not count.
    """
    n = members.shape[1]
    if n < 2:
        return 0.0
    off = members - members.mean(axis=1, keepdims=True)
    return float(off.var(axis=0).sum()) / (n * (n - 1))


def units_apart(arm: Arm, members: Floats | None) -> Component | None:
    """The part of units in the mean of one draw's seeds that no two seeds share.

    `members` are the resamples of shared units. None if a cell has a single unit: its scatter is
    not known. A rank correlation has no closed form: its part counts as 0 and stays in the mean
    square of seeds.
    """
    n_units = [cell.n_units for cell in arm.with_units]
    if min(n_units) < 2:
        return None
    if members is not None:
        n = min(n_units[0], MOST_UNITS)
        return Component(n / (n - 1) * interaction_variance(members), n - 1)
    if arm.statistic != "mean":
        return Component(0.0, 1)
    share = (-1 if arm.complement else 1) / len(n_units)
    return summed([mean_of_units(cell.columns[0]).scaled(share) for cell in arm.with_units])


def units_of_one_cell(arm: Arm, resampler: Resampler) -> Component | None:
    """The part of units in an arm of one cell; None if a resample has no value."""
    if arm.statistic == "mean":
        return units_apart(arm, None)
    values = resampler.members(arm).mean(axis=1)
    return unit_component(values, arm.n_units) if np.isfinite(values).all() else None


def seed_variance(arms: Iterable[Arm], resampler: Resampler) -> SeedVariance | None:
    """The seed variance of a comparison, from each draw with several seeds of these arms.

    None where no draw has them. Arms without a value are left out.
    """
    found = []
    for arm in arms:
        if any(cell.reason or not cell.is_finite for cell in arm.cells):
            continue
        for draw in arm.draws:
            own = Arm(draw, arm.statistic, arm.complement, arm.units_are_shared)
            if len(draw) < 2 or (arm.units_are_shared and not own.units_agree):
                continue
            members = resampler.members(own) if arm.units_are_shared else None
            values, apart = own.member_values, units_apart(own, members)
            if apart is not None and np.isfinite([*values, apart.variance]).all():
                found.append((values, apart.variance))
    return pooled_seeds(found)
