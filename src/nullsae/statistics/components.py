"""Variance components of an arm: seeds, latents and documents.

Seed variance is pooled over all draws and arms of a comparison (one metric, site and SAE recipe),
because the few seeds of one arm estimate it badly. Differences between draws, the spread of
latents and their number are specific to each arm.

Scores of judged windows vary with latents and with documents. The two are crossed, since latents
share documents. The variance is that of two-way clusters, latents plus documents minus both
(Cameron, Gelbach & Miller 2011, J. Bus. Econ. Stat. 29, 238-249; Owen 2007, Ann. Appl. Stat. 1,
386-411), computed from how much each document moves a score, as Obuchowski (1997, Biometrics 53,
567-578) does for AUROC of clustered data.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nullsae.statistics.bootstrap import MOST_UNITS, Arm, Documents, Floats, Resampler
from nullsae.statistics.spread import (
    Component,
    SeedVariance,
    mean_component,
    mean_of_units,
    pooled_seeds,
    seed_component,
    summed,
    unit_component,
)

# With fewer effective documents the estimate of their variance is useless.
FEWEST_DOCUMENTS = 2


def interaction_variance(members: Floats) -> float:
    """Compute the variance of the mean of members, [n_resamples, n_members], that is theirs alone.

    It is what remains in each resample after subtracting the mean of all members. A unit that is
    hard for all members does not count.
    """
    n = int(members.shape[1])
    if n < 2:
        return 0.0
    off = members - members.mean(axis=1, keepdims=True)
    return float(off.var(axis=0).sum()) / (n * (n - 1))


def units_apart(arm: Arm, members: Floats | None) -> Component | None:
    """Return the part of units in the mean of one draw's seeds that no two seeds share.

    `members` are the resamples of shared units. None if a cell has a single unit, whose spread is
    unknown. A rank correlation has no closed form: its part counts as 0 and stays in the mean
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


def whole_parts(
    arm: Arm, members: Floats | None, seeds: SeedVariance | None, resampler: Resampler
) -> tuple[Component, ...] | None:
    """Return the part of an arm's draws, or of one draw's seeds, or of one cell's latents.

    `members` are the resamples of shared units, `seeds` is the pooled seed variance. None if a
    resample has no value.
    """
    if arm.n_draws > 1:
        return (mean_component(arm.member_values),)
    apart = units_apart(arm, members)
    if seeds is not None and apart is not None:
        return (seed_component(seeds, arm.n_seeds, apart),)
    if arm.level is not None:
        return (mean_component(arm.member_values),)
    if arm.units_are_shared:
        return ()
    if arm.statistic == "mean" and apart is not None:
        return (apart,)
    values = resampler.members(arm).mean(axis=1)
    return (unit_component(values, arm.n_units),) if np.isfinite(values).all() else None


def seed_variance(arms: Iterable[Arm], resampler: Resampler) -> SeedVariance | None:
    """Pool the seed variance of a comparison over all draws of these arms with several seeds.

    None if no draw has several. Arms without a value are left out.
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


def documents_of(arm: Arm) -> Documents | None:
    """Find how much documents move an arm's value; None unless all of its cells know it.

    Documents are the same for all draws and seeds. The spread of draws and seeds already includes
    what no two of them share, and that of latents what a document moves in single latents.
    """
    known = [[c.documents for c in member if c.documents is not None] for member in arm.members]
    if not known or sum(map(len, known)) < len(arm.with_units):
        return None
    effects = np.stack([np.mean([found.effect for found in own], axis=0) for own in known])
    n_windows = np.sum([found.n_windows for own in known for found in own], axis=0)
    mean, n = effects.mean(axis=0), len(effects)
    held = known[0][0].held if n == 1 else float(((effects - mean) ** 2).sum()) / (n * (n - 1))
    return Documents(mean, n_windows, held)


def document_component(documents: Documents) -> Component | None:
    """Return the part of documents, in closed form; None for a single effective document.

    Documents with unequal numbers of windows count as (sum n)^2 / sum n^2 equal ones (Kish 1965).
    """
    n = documents.n_windows.sum() ** 2 / max(1.0, float((documents.n_windows**2).sum()))
    if n < FEWEST_DOCUMENTS:
        return None
    whole = float((documents.effect**2).sum())
    variance = max(0.0, n / (n - 1) * whole - documents.held)
    third = float((documents.effect**3).sum())
    share = (variance / whole) ** 1.5 if whole > 0 else 0.0
    return Component(variance, n - 1, third * share)
