"""Estimates of single arms, and contrasts of a real thing with its null, or why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nullsae.config.metrics import Metric
from nullsae.config.statistics import Statistics
from nullsae.config.variants import VARIANTS, is_positive_control
from nullsae.statistics.bootstrap import MOST_UNITS, Arm, Documents, Floats, Resampler
from nullsae.statistics.components import (
    document_component,
    documents_of,
    interaction_variance,
    whole_parts,
)
from nullsae.statistics.effects import alpha_of, holm, probability_of_superiority
from nullsae.statistics.matching import FEWEST, matched
from nullsae.statistics.permutation import Permuter
from nullsae.statistics.spread import (
    Component,
    SeedVariance,
    Spread,
    unit_component,
)

# A standard error below this share of the values comes from rounding alone.
ROUNDING = 1e-12
THIS_DRAW = "this randomization"
THIS_RETRAINING = "this retraining"
UNREPLICATED = "one draw and one seed: no p-values"
"""They would describe only the units of two SAEs."""
NOT_PERMUTED = "no permutation test of pairs"


@dataclass(frozen=True)
class Estimate:
    """An arm's value and error. Numbers that cannot be computed are None, with a `reason`."""

    arm: Arm
    value: float | None = None
    interval: tuple[float, float] | None = None
    whole: tuple[Component, ...] = ()
    """The part of draws, seeds or latents."""
    resamples: Floats | None = None
    """For shared units: the arm's value in each resample, [n_resamples]."""
    interaction: float = 0.0
    """For shared units: the part of the resamples' variance that `whole` already includes."""
    documents: Documents | None = None
    """What documents contribute to scores of judged windows."""
    has_error: bool = False
    reason: str | None = None

    @property
    def borrows_seeds(self) -> bool:
        """Whether the seed variance of other arms replaces that of seeds that this arm lacks."""
        return self.arm.level is None and any(part.is_pooled for part in self.whole)


def estimate(
    arm: Arm,
    metric: Metric,
    statistics: Statistics,
    resampler: Resampler,
    seeds: SeedVariance | None = None,
) -> Estimate:
    """Estimate value, error and interval of one arm; `metric` words the reasons.

    `seeds` is the seed variance of the comparison (`seed_variance` of all its arms). Without it, an
    arm uses its own seeds, if it has several.
    """
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

    members, resamples, interaction = None, None, 0.0
    if arm.units_are_shared:
        members = resampler.members(arm)
        if not np.isfinite(members).all():
            return Estimate(arm, value, reason=_undefined_sometimes(metric))
        resamples, interaction = members.mean(axis=1), interaction_variance(members)
    whole = whole_parts(arm, members, seeds, resampler)
    if whole is None:
        return Estimate(arm, value, reason=_undefined_sometimes(metric))
    known = Estimate(
        arm, value, None, whole, resamples, interaction, documents_of(arm), has_error=True
    )
    spread = Spread.of(_components([known]))
    if spread.standard_error <= ROUNDING * abs(value):
        equal = f"{len(arm.members)} {arm.level}s" if arm.level else f"{arm.n_units} {plural}"
        return replace(known, reason=f"all {equal} are equal: no interval")
    interval = spread.interval(value, statistics.confidence)
    empty = [f"draw {c.draw}, seed {c.seed}" for c in arm.cells if not c.n_units]
    left_out = f"no {plural} in {' and '.join(empty)}, left out" if empty else None
    return replace(known, interval=interval, reason=left_out)


def _undefined_sometimes(metric: Metric) -> str:
    return f"{_undefined(metric)} in some resamples: no interval"


def _undefined(metric: Metric) -> str:
    if metric.form == "rank_correlation":
        return f"{metric.found_in} does not vary"
    return f"{metric.denominator} sums to 0"


def summary_row(estimated: Estimate, metric: Metric) -> dict[str, Any]:
    """Make a row of `summaries` without its keys."""
    arm, (low, high) = estimated.arm, estimated.interval or (None, None)
    return {
        "unit": metric.unit,
        **{"n_draws": arm.n_draws, "n_seeds": arm.n_seeds, "n_units": arm.n_units},
        **{"value": estimated.value, "low": low, "high": high, "reason": estimated.reason},
    }


def contrast_row(
    real: Estimate,
    null: Estimate,
    metric: Metric,
    statistics: Statistics,
    permuter: Permuter,
    bins: Mapping[int, int] | None = None,
    *,
    names: tuple[str, str],
    differences: Estimate | None = None,
) -> dict[str, Any]:
    """Make a row of `contrasts` without its keys; `adjust` fills what depends on the family.

    `n_draws` and `n_seeds` are those of the null. `bins` come from `matching.common_bins` of all
    arms of this comparison; `names` are those of the real thing and of the null. If both concern
    the same latents, `differences` is the arm of null minus real, latent by latent.
    """
    none = (None, None)
    row: dict[str, Any] = {
        **dict(zip(("real", "null"), names, strict=True)),
        **{"unit": metric.unit, "n_draws": null.arm.n_draws, "n_seeds": null.arm.n_seeds},
        **{"real_n_units": real.arm.n_units, "n_units": null.arm.n_units},
        "speaks_of": speaks_of(real, null, metric, names),
        **{"real_value": real.value, "value": null.value},
        **dict(zip(("value_low", "value_high"), null.interval or none, strict=True)),
        **dict(zip(("real_low", "real_high"), real.interval or none, strict=True)),
        **dict.fromkeys(TESTED),
        **{"margin": None, "margin_rule": statistics.margin_rule(metric.name, names[0])},
        "is_replicated": len(null.arm.with_units or null.arm.cells) > 1,
        **_matched_columns(real, null, metric, statistics, bins or {}, is_paired=bool(differences)),
    }
    arms = dict(zip(names, (real, null), strict=True))
    reasons = [f"{name}: {arm.reason}" for name, arm in arms.items() if arm.reason]
    if real.value is not None:
        row["margin"] = statistics.margin(metric.name, real.value)
    if real.value is not None and null.value is not None:
        row["difference"] = null.value - real.value
        own, other = real.arm.unit_values(), null.arm.unit_values()
        if own is not None and other is not None:
            row["probability_of_superiority"] = probability_of_superiority(own, other)
        if real.has_error and null.has_error:
            spread = spread_of_difference(real, null, differences)
            if isinstance(spread, str):
                reasons.append(spread)
            else:
                refused = margin_problem(row, metric, statistics)
                row |= tests(spread, row["difference"], row["margin"], statistics.confidence)
                if refused is not None:
                    row |= dict.fromkeys(MARGIN_TESTS)
                found = permuter.p_value(real.arm, null.arm)
                row["p_permutation"], why = (None, NOT_PERMUTED) if differences else found
                reasons += [reason for reason in (refused, why) if reason]
    row["reason"] = "; ".join(reasons) or None
    return row


MARGIN_TESTS = ("p_minimum_effect", "p_equivalence")
"""Columns of `contrasts` with the tests against the margin, before Holm's correction."""
ADJUSTED = {name: f"{name}_holm" for name in MARGIN_TESTS}
DECISIONS = {"p_minimum_effect": "is_beyond_margin", "p_equivalence": "is_within_margin"}
P_VALUES = ("p_value", *MARGIN_TESTS, *ADJUSTED.values(), "p_permutation", "matched_p_value")
"""Columns of `contrasts` that are null without replication."""
TESTED = (
    *("difference", "difference_low", "difference_high", "standard_error", "df"),
    *("probability_of_superiority", "p_value", *MARGIN_TESTS, *ADJUSTED.values()),
    *(*DECISIONS.values(), "p_permutation", "detectable_difference"),
)
"""Columns of `contrasts` that need a value in both arms, and mostly an error too."""


def spread_of_difference(
    real: Estimate, null: Estimate, differences: Estimate | None = None
) -> Spread | str:
    """Return the error of null minus real, or why there is none.

    `differences` is the arm of the differences themselves if the arms are paired by latent. Whole
    draws and seeds are then paired as well.
    """
    if real.arm.units_are_shared and real.arm.n_units != null.arm.n_units:
        return "the arms' documents differ in number: no test"
    spread = Spread.of(_components([real, null] if differences is None else [differences]))
    if spread.standard_error <= ROUNDING * max(abs(real.value or 0), abs(null.value or 0)):
        return "the difference is the same in all resamples: no test"
    return spread


def tests(spread: Spread, difference: float, margin: float, confidence: float) -> dict[str, float]:
    """Compute the columns of `contrasts` that follow from the error of a difference."""
    low, high = spread.interval(difference, confidence)
    return {
        **{"standard_error": spread.standard_error, "df": spread.df},
        **{"difference_low": low, "difference_high": high},
        "p_value": spread.p_two_sided(difference),
        "p_minimum_effect": spread.p_minimum_effect(difference, margin),
        "p_equivalence": spread.p_equivalence(difference, margin),
    }


def margin_problem(row: Mapping[str, Any], metric: Metric, statistics: Statistics) -> str | None:
    """Return why a contrast is not tested against its margin; None if it is.

    An absolute margin must not exceed the distance from the real thing to the floor, or no null
    could exceed it. A share of that distance is refused if the real thing is not told from the
    floor: the margin would be a share of noise.
    """
    name, value, low, high = (row[key] for key in ("real", "real_value", "real_low", "real_high"))
    floor, margin = metric.floor, row["margin"]
    if statistics.absolute_margin(metric.name) is not None:
        if margin < abs(value - floor):
            return None
        return (
            f"no test: the margin {margin:g} cannot be exceeded between {name} ({value:.4g}) "
            f"and the floor ({floor:g})"
        )
    if value == floor or (low is not None and low <= floor <= high):
        of = "" if low is None else f" [{low:.4g}, {high:.4g}]"
        return f"no test: {name}, {value:.4g}{of}, cannot be told from the floor {floor:g}"
    return None


def _components(arms: list[Estimate]) -> list[Component]:
    """List independent parts of one arm's error, or of the error of the second minus the first."""
    *minus, plus = arms
    parts = [*plus.whole, *(part.scaled(-1) for arm in minus for part in arm.whole)]
    if plus.resamples is not None:
        resamples = plus.resamples
        for arm in minus:
            assert arm.resamples is not None
            resamples = resamples - arm.resamples
        interaction = sum(arm.interaction for arm in arms)
        # Resamples draw units, or groups of units.
        n_resampled = min(plus.arm.n_units, MOST_UNITS)
        parts.append(unit_component(resamples, n_resampled, interaction))
    if plus.documents is not None:
        documents = plus.documents
        for arm in minus:
            if arm.documents is None:
                return parts
            effect, held = documents.effect - arm.documents.effect, arm.documents.held
            documents = documents._replace(effect=effect, held=documents.held + held)
        if (part := document_component(documents)) is not None:
            parts.append(part)
    return parts


def _matched_columns(
    real: Estimate,
    null: Estimate,
    metric: Metric,
    statistics: Statistics,
    bins: Mapping[int, int],
    *,
    is_paired: bool,
) -> dict[str, Any]:
    """Compute the frequency-matched columns of a contrast."""
    row: dict[str, Any] = dict.fromkeys(MATCHED)
    reasons = {
        f"{metric.unit}s have no firing rate": metric.unit != "latent",
        "not a mean over latents": metric.form != "mean",
        "an arm has no value": real.value is None or null.value is None,
        "both arms are of the same latents": is_paired,
        f"no half-decade of the firing share has {FEWEST} latents of every cell": not bins,
    }
    for reason, holds in reasons.items():
        if holds:
            return row | {"matched_reason": reason}
    own, other = matched(real.arm, bins), matched(null.arm, bins)
    difference = other.value - own.value
    row |= {"n_matched": sum(bins.values()), "matched_difference": difference}
    row |= {"matched_real_value": own.value, "matched_value": other.value}
    spread = Spread.of([*other.components, *(part.scaled(-1) for part in own.components)])
    if spread.standard_error <= ROUNDING * max(abs(own.value), abs(other.value)):
        row["matched_reason"] = "the difference is the same in all resamples: no test"
        return row
    interval = spread.interval(difference, statistics.confidence)
    row["matched_difference_low"], row["matched_difference_high"] = interval
    row["matched_p_value"] = spread.p_two_sided(difference)
    return row


MATCHED = (
    *("n_matched", "matched_real_value", "matched_value", "matched_difference"),
    *("matched_difference_low", "matched_difference_high", "matched_p_value", "matched_reason"),
)
"""Columns of `contrasts` at equal firing rates."""


def adjust(rows: Iterable[dict[str, Any]], family: str, statistics: Statistics) -> None:
    """Correct both tests in one family of contrasts, and fill the columns that depend on it.

    Contrasts that are not tested, or whose arms are not comparable, do not count. Holm's correction
    applies to each test separately: a difference cannot be both beyond the margin and within it, so
    at most one of a contrast's two hypotheses is false. The detectable difference is the one that
    the first step of Holm's procedure, at the level divided by the family's size, finds beyond the
    margin with 80% power. P-values without replication are removed.
    """
    rows = list(rows)
    tested = [
        row for row in rows if row["p_equivalence"] is not None and row["not_comparable"] is None
    ]
    alpha = alpha_of(statistics.confidence)
    for name, adjusted in ADJUSTED.items():
        for row, p_holm in zip(tested, holm([row[name] for row in tested]), strict=True):
            row[adjusted], row[DECISIONS[name]] = p_holm, p_holm <= alpha
    for row in rows:
        row["family"], row["n_family"] = family, len(tested)
    for row in tested:
        away = Spread(row["standard_error"], row["df"]).detectable(alpha / len(tested))
        row["detectable_difference"] = row["margin"] + away
    for row in rows:
        if not row["is_replicated"] and row["p_value"] is not None:
            row |= dict.fromkeys(P_VALUES)
            row["reason"] = "; ".join(filter(None, (row["reason"], UNREPLICATED)))


def scope_of(variant: str | None, arm: Arm) -> str:
    """Return what a verdict about a variant applies to: its kind, or the one draw that was made.

    `variant` is None for a drawn null that is no variant.
    """
    # Without units there is no value; the verdict then names what was made.
    cells = arm.with_units or arm.cells
    if variant is not None and VARIANTS[variant].fixed:
        return "these SAEs" if len(cells) < 2 else "this model"
    once, often = THIS_DRAW, "randomizations of this kind"
    if variant is not None and is_positive_control(variant):
        once, often = THIS_RETRAINING, "retrainings from other seeds"
    return once if len({c.draw for c in cells}) < 2 else often


def speaks_of(real: Estimate, null: Estimate, metric: Metric, names: tuple[str, str]) -> str:
    """Return what a contrast's interval generalizes to: what is resampled in each arm."""

    def varies(estimated: Estimate) -> str:
        arm, documents = estimated.arm, estimated.documents
        has_documents = documents is not None and document_component(documents) is not None
        text = " and documents" if has_documents else ""
        if estimated.borrows_seeds:
            return f"seeds of one draw{text}, by the variance of other arms' seeds"
        if arm.level is None:
            return f"{metric.unit}s{text} of one draw and seed"
        level = "draws" if arm.level == "draw" else "seeds of one draw"
        return f"{level} and {metric.unit}s" if arm.units_are_shared else level + text

    own, other = varies(real), varies(null)
    return other if own == other else f"{other} of {names[1]}, {own} of {names[0]}"
