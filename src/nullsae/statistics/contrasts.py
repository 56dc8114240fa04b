"""One arm's estimate, and its contrast against the trained arm, with a reason for each null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nullsae.config.metrics import Metric
from nullsae.config.statistics import Statistics
from nullsae.statistics.bootstrap import MOST_UNITS, Arm, Floats, Resampler
from nullsae.statistics.effects import alpha_of, holm, probability_of_superiority
from nullsae.statistics.matching import FEWEST, matched
from nullsae.statistics.permutation import Permuter
from nullsae.statistics.spread import Component, Spread, mean_component, unit_component

# A standard error below this share of the values comes from rounding alone.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """An arm's value and its error; what cannot be computed is None, and `reason` says why."""

    arm: Arm
    value: float | None = None
    interval: tuple[float, float] | None = None
    whole: tuple[Component, ...] = ()
    """The part of draws, seeds or latents."""
    resamples: Floats | None = None
    """Of shared units: the arm's value in each resample, [n_resamples]."""
    interaction: float = 0.0
    """Of shared units: the part of the resamples' variance that `whole` holds already."""
    has_error: bool = False
    reason: str | None = None


def estimate(arm: Arm, metric: Metric, statistics: Statistics, resampler: Resampler) -> Estimate:
    """Value, error and interval of one arm; `metric` gives the reasons their words."""
    plural = f"{metric.unit}s"
    if undefined := next((cell.reason for cell in arm.cells if cell.reason), None):
        return Estimate(arm, reason=undefined)
    if not arm.n_units:
        n_null = sum(cell.n_null for cell in arm.cells)
        found = f"{metric.found_in} is null for all {n_null} {plural}" if n_null else f"no {plural}"
        return Estimate(arm, reason=found)
    for cell in arm.cells:
        if not cell.is_finite:
            where = f"draw {cell.draw}, seed {cell.seed}"
            return Estimate(arm, reason=f"NaN or infinite {metric.found_in} in {where}")
    value = arm.value()
    if not np.isfinite(value):
        return Estimate(arm, reason=_undefined(metric))
    if arm.n_units < 2:
        return Estimate(arm, value, reason=f"one {metric.unit} only: no interval")
    if arm.units_are_shared and not arm.units_agree:
        return Estimate(arm, value, reason="cells differ in their documents: no interval")

    whole: tuple[Component, ...] = ()
    resamples, interaction = None, 0.0
    if arm.level is not None:
        whole = (mean_component(arm.member_values),)
    if arm.level is None or arm.units_are_shared:
        members = resampler.members(arm)
        if not np.isfinite(members).all():
            some = f"{_undefined(metric)} in some resamples"
            return Estimate(arm, value, reason=f"{some}: no interval")
        values = members.mean(axis=1)
        if not arm.units_are_shared:
            whole = (unit_component(values, arm.n_units),)
        else:
            resamples = values
            if arm.level is not None:
                own = (members - values[:, None]).var(axis=0).sum()
                interaction = float(own) / (members.shape[1] * (members.shape[1] - 1))
    known = Estimate(arm, value, None, whole, resamples, interaction, has_error=True)
    spread = Spread.of(_components([known]))
    if spread.standard_error <= ROUNDING * abs(value):
        equal = f"{len(arm.members)} {arm.level}s" if arm.level else f"{arm.n_units} {plural}"
        return replace(known, reason=f"all {equal} are equal: no interval")
    interval = spread.interval(value, statistics.confidence)
    empty = [f"draw {c.draw}, seed {c.seed}" for c in arm.cells if not c.n_units]
    left_out = f"no {plural} in {' and '.join(empty)}, left out" if empty else None
    return replace(known, interval=interval, reason=left_out)


def _undefined(metric: Metric) -> str:
    if metric.form == "rank_correlation":
        return f"{metric.found_in} does not vary"
    return f"{metric.denominator} sums to 0"


def summary_row(estimated: Estimate, metric: Metric) -> dict[str, Any]:
    """A row of `summaries`, without its keys."""
    arm, (low, high) = estimated.arm, estimated.interval or (None, None)
    return {
        "unit": metric.unit,
        **{"n_draws": arm.n_draws, "n_seeds": arm.n_seeds, "n_units": arm.n_units},
        **{"value": estimated.value, "low": low, "high": high, "reason": estimated.reason},
    }


def contrast_row(
    trained: Estimate,
    variant: Estimate,
    metric: Metric,
    statistics: Statistics,
    permuter: Permuter,
    bins: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """A row of `contrasts`, without its keys; `adjust` fills what depends on the family.

    `n_draws` and `n_seeds` are those of the variant. `bins` come from `matching.common_bins` of all
    variants of this comparison.
    """
    margin = statistics.margin(metric.name)
    if metric.margin_is_share:
        margin *= abs(trained.value or 0.0)
    none = (None, None)
    row: dict[str, Any] = {
        **{"unit": metric.unit, "n_draws": variant.arm.n_draws, "n_seeds": variant.arm.n_seeds},
        **{"n_units_trained": trained.arm.n_units, "n_units_variant": variant.arm.n_units},
        "speaks_of": speaks_of(trained.arm, variant.arm, metric),
        **{"trained": trained.value, "value": variant.value},
        **dict(zip(("value_low", "value_high"), variant.interval or none, strict=True)),
        **dict(zip(("trained_low", "trained_high"), trained.interval or none, strict=True)),
        **dict.fromkeys(TESTED),
        "equivalence_margin": margin,
        **_matched_columns(trained, variant, metric, statistics, bins or {}),
    }
    arms = {"trained": trained, "variant": variant}
    reasons = [f"{name}: {arm.reason}" for name, arm in arms.items() if arm.reason]
    if trained.value is not None and variant.value is not None:
        row["difference"] = variant.value - trained.value
        own, other = trained.arm.unit_values(), variant.arm.unit_values()
        if own is not None and other is not None:
            row["probability_of_superiority"] = probability_of_superiority(own, other)
        if trained.has_error and variant.has_error:
            problem = _test(row, trained, variant, statistics)
            p_permutation, why = permuter.p_value(trained.arm, variant.arm)
            if problem is None:
                row["p_permutation"] = p_permutation
            reasons += [reason for reason in (problem or why,) if reason]
    row["reason"] = "; ".join(reasons) or None
    return row


TESTED = (
    *("difference", "difference_low", "difference_high", "standard_error", "df"),
    *("probability_of_superiority", "p_value", "p_holm", "p_permutation", "p_equivalence"),
    "detectable_difference",
)
"""Columns of `contrasts` that are null unless both arms have a value, and most an error."""


def _test(
    row: dict[str, Any], trained: Estimate, variant: Estimate, statistics: Statistics
) -> str | None:
    """Fill in what the difference's error gives; the reason where it gives nothing."""
    if trained.arm.units_are_shared and trained.arm.n_units != variant.arm.n_units:
        return "the arms' documents differ in number: no test"
    spread = Spread.of(_components([trained, variant]))
    if spread.standard_error <= ROUNDING * max(abs(row["trained"]), abs(row["value"])):
        return "the difference is the same in all resamples: no test"
    difference = row["difference"]
    row["standard_error"], row["df"] = spread.standard_error, spread.df
    interval = spread.interval(difference, statistics.confidence)
    row["difference_low"], row["difference_high"] = interval
    row["p_value"] = spread.p_two_sided(difference)
    row["p_equivalence"] = spread.p_equivalence(difference, row["equivalence_margin"])
    return None


def _components(arms: list[Estimate]) -> list[Component]:
    """Independent parts of one arm's error, or of the second's minus the first's."""
    *minus, plus = arms
    parts = [*plus.whole, *(part.scaled(-1) for arm in minus for part in arm.whole)]
    if plus.resamples is not None:
        resamples = plus.resamples
        for arm in minus:
            assert arm.resamples is not None
            resamples = resamples - arm.resamples
        interaction = sum(arm.interaction for arm in arms)
        # Resamples are made of units, or of groups of them.
        n_resampled = min(plus.arm.n_units, MOST_UNITS)
        parts.append(unit_component(resamples, n_resampled, interaction))
    return parts


def _matched_columns(
    trained: Estimate,
    variant: Estimate,
    metric: Metric,
    statistics: Statistics,
    bins: Mapping[int, int],
) -> dict[str, Any]:
    """The frequency-matched columns of a contrast."""
    row: dict[str, Any] = dict.fromkeys(MATCHED)
    reasons = {
        f"{metric.unit}s have no firing rate": metric.unit != "latent",
        "not a mean over latents": metric.form != "mean",
        "an arm has no value": trained.value is None or variant.value is None,
        f"no half-decade of the firing share holds {FEWEST} latents of every cell": not bins,
    }
    for reason, holds in reasons.items():
        if holds:
            return row | {"matched_reason": reason}
    own, other = matched(trained.arm, bins), matched(variant.arm, bins)
    difference = other.value - own.value
    row |= {"n_matched": sum(bins.values()), "matched_difference": difference}
    row |= {"matched_trained": own.value, "matched_value": other.value}
    spread = Spread.of([*other.components, *(part.scaled(-1) for part in own.components)])
    if spread.standard_error <= ROUNDING * max(abs(own.value), abs(other.value)):
        row["matched_reason"] = "the difference is the same in all resamples: no test"
        return row
    interval = spread.interval(difference, statistics.confidence)
    row["matched_difference_low"], row["matched_difference_high"] = interval
    row["matched_p_value"] = spread.p_two_sided(difference)
    return row


MATCHED = (
    *("n_matched", "matched_trained", "matched_value", "matched_difference"),
    *("matched_difference_low", "matched_difference_high", "matched_p_value", "matched_reason"),
)
"""Columns of `contrasts` at equal firing rates."""


def adjust(rows: Iterable[dict[str, Any]], statistics: Statistics) -> None:
    """Fill `p_holm` and `detectable_difference` in one family of contrasts.

    Contrasts without a p-value do not count. What could have been seen is what the first step of
    Holm's procedure, at the level over the family's size, would have found with 80% power.
    """
    tested = [row for row in rows if row["p_value"] is not None]
    level = alpha_of(statistics.confidence) / max(1, len(tested))
    for row, p_holm in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = p_holm
        row["detectable_difference"] = Spread(row["standard_error"], row["df"]).detectable(level)


def speaks_of(trained: Arm, variant: Arm, metric: Metric) -> str:
    """What a contrast's interval generalizes to: what is resampled in each arm, in words."""

    def varies(arm: Arm) -> str:
        if arm.level is None:
            return f"{metric.unit}s of one draw and seed"
        level = "draws" if arm.level == "draw" else "seeds of one draw"
        return f"{level} and {metric.unit}s" if arm.units_are_shared else level

    own, other = varies(trained), varies(variant)
    return other if own == other else f"{other} of the variant, {own} of trained"
