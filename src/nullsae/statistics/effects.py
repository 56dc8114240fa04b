"""Effect sizes of a contrast, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nullsae.statistics.bootstrap import Floats


def probability_of_superiority(real: Floats, null: Floats) -> float | None:
    """Compute P(real > null) + P(equal) / 2 for one unit of each; None if an arm has no unit.

    This is the Mann-Whitney U of `real` over the number of pairs, also known as the common
    language effect size (Vargha & Delaney 2000).
    """
    if not len(real) or not len(null):
        return None
    ordered = np.sort(null)
    below = np.searchsorted(ordered, real, side="left").sum()
    below_or_equal = np.searchsorted(ordered, real, side="right").sum()
    return float((below + below_or_equal) / (2 * len(real) * len(null)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down procedure (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def alpha_of(confidence: float) -> float:
    """Return the test level for a confidence, rounded: 1 - 0.9 alone is slightly below 0.1."""
    return round(1 - confidence, 12)
