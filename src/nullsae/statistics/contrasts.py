"""One arm's estimate, and its contrast against the trained arm, with a reason for each null."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nullsae.outputs import Statistics
from nullsae.statistics.bootstrap import Arm, Floats, percentile_interval, resample
from nullsae.statistics.effects import (
    alpha_of,
    holm,
    p_equivalence,
    p_two_sided,
    probability_of_superiority,
    smallest_p_holm,
)
from nullsae.statistics.metrics import Metric

# Resamples that differ by less than this share of their size differ by rounding alone.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """An arm's value with its interval; what cannot be computed is None, and `reason` says why."""

    arm: Arm
    value: float | None = None
    low: float | None = None
    high: float | None = None
    resamples: Floats | None = None
    """Float64 [n_resamples]; None if the arm has too few units to resample."""
    reason: str | None = None


def estimate(
    arm: Arm,
    metric: Metric,
    statistics: Statistics,
    generator: np.random.Generator,
    shared: np.random.Generator | None = None,
) -> Estimate:
    """Value and percentile interval of one arm.

    Args:
        arm: the units of one variant.
        metric: for the words of the reasons.
        statistics: number of resamples and confidence.
        generator: the arm's own.
        shared: a fresh copy of the generator that all arms share, if the metric's units are
            the same documents in all arms.
    """
    plural = f"{metric.unit}s"
    if not arm.n_units:
        n_null = sum(cell.n_null for cell in arm.cells)
        found = (
            f"{metric.numerator} is null for all {n_null} {plural}" if n_null else f"no {plural}"
        )
        return Estimate(arm, reason=found)
    for cell in arm.cells:
        if not cell.is_finite:
            where = f"draw {cell.draw}, seed {cell.seed}"
            return Estimate(arm, reason=f"NaN or infinite {_columns(metric)} in {where}")
    value = arm.value()
    if not np.isfinite(value):
        return Estimate(arm, reason=f"{metric.denominator} sums to 0")
    if arm.n_units < 2:
        return Estimate(arm, value, reason=f"one {metric.unit} only: no interval")

    resamples = resample(arm, statistics.n_resamples, generator, shared=shared)
    if not np.isfinite(resamples).all():
        reason = f"{metric.denominator} sums to 0 in some resamples: no interval"
        return Estimate(arm, value, reason=reason)
    if _is_constant(resamples, abs(value)):
        reason = f"all {arm.n_units} {plural} are equal: no interval"
        return Estimate(arm, value, resamples=resamples, reason=reason)
    low, high = percentile_interval(resamples, statistics.confidence)
    return Estimate(arm, value, low, high, resamples, _left_out(arm, plural))


def summary_row(estimated: Estimate, metric: Metric) -> dict[str, Any]:
    """A row of `summaries`, without its keys."""
    return {
        "unit": metric.unit,
        "n_draws": estimated.arm.n_draws,
        "n_seeds": estimated.arm.n_seeds,
        "n_units": estimated.arm.n_units,
        "value": estimated.value,
        "low": estimated.low,
        "high": estimated.high,
    }


def contrast_row(
    trained: Estimate, variant: Estimate, metric: Metric, statistics: Statistics
) -> dict[str, Any]:
    """A row of `contrasts`, without its keys; `p_holm` waits for `adjust`.

    `n_draws` and `n_seeds` are those of the variant.
    """
    margin = float(getattr(statistics.equivalence_margins, metric.name))
    if metric.margin_is_share:
        margin *= abs(trained.value or 0.0)
    row: dict[str, Any] = {
        "unit": metric.unit,
        "n_draws": variant.arm.n_draws,
        "n_seeds": variant.arm.n_seeds,
        "n_units_trained": trained.arm.n_units,
        "n_units_variant": variant.arm.n_units,
        "trained": trained.value,
        "value": variant.value,
        "value_low": variant.low,
        "value_high": variant.high,
        "trained_low": trained.low,
        "trained_high": trained.high,
        "difference": None,
        "difference_low": None,
        "difference_high": None,
        "probability_of_superiority": None,
        "p_value": None,
        "p_holm": None,
        "equivalence_margin": margin,
        "p_equivalence": None,
    }
    reasons = [
        f"{name}: {arm.reason}"
        for name, arm in (("trained", trained), ("variant", variant))
        if arm.reason
    ]
    if trained.value is not None and variant.value is not None:
        row["difference"] = variant.value - trained.value
        row["probability_of_superiority"] = probability_of_superiority(
            trained.arm.unit_values(), variant.arm.unit_values()
        )
        if trained.resamples is not None and variant.resamples is not None:
            differences = variant.resamples - trained.resamples
            if _is_constant(differences, max(abs(trained.value), abs(variant.value))):
                reasons.append("the difference is the same in all resamples: no test")
            else:
                row["difference_low"], row["difference_high"] = percentile_interval(
                    differences, statistics.confidence
                )
                row["p_value"] = p_two_sided(differences)
                row["p_equivalence"] = p_equivalence(differences, margin)
    row["reason"] = "; ".join(reasons) or None
    return row


def adjust(rows: Iterable[dict[str, Any]], statistics: Statistics) -> None:
    """Fill `p_holm` in one family of contrasts; those without a p-value do not count.

    Where the family is so large that no p can come out significant with the configured number
    of resamples, `reason` says so.
    """
    tested = [row for row in rows if row["p_value"] is not None]
    floor = smallest_p_holm(statistics.n_resamples, len(tested))
    for row, p_holm in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = p_holm
        if floor > alpha_of(statistics.confidence):
            note = (
                f"no p_holm below {floor:.2g} is possible with {statistics.n_resamples} resamples "
                f"and {len(tested)} contrasts: raise statistics.n_resamples"
            )
            row["reason"] = f"{row['reason']}; {note}" if row["reason"] else note


def _is_constant(resamples: Floats, size: float) -> bool:
    return bool(np.ptp(resamples) <= ROUNDING * size)


def _columns(metric: Metric) -> str:
    return metric.numerator + (f" or {metric.denominator}" if metric.denominator else "")


def _left_out(arm: Arm, plural: str) -> str | None:
    """What an arm's numbers do not cover, though they exist."""
    empty = [f"draw {c.draw}, seed {c.seed}" for c in arm.cells if not c.n_units]
    return f"no {plural} in {' and '.join(empty)}, left out" if empty else None
