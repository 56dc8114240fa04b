"""Effect sizes and p-values of a contrast, from units and from bootstrap resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nullsae.statistics.bootstrap import Floats


def probability_of_superiority(trained: Floats, variant: Floats) -> float | None:
    """P(trained > variant) + P(equal) / 2 for one unit of each, drawn at random.

    This is the Mann-Whitney U of `trained` over the number of pairs, also known as the common
    language effect size (Vargha & Delaney 2000). None if an arm has no unit.
    """
    if not len(trained) or not len(variant):
        return None
    ordered = np.sort(variant)
    below = np.searchsorted(ordered, trained, side="left").sum()
    below_or_equal = np.searchsorted(ordered, trained, side="right").sum()
    return float((below + below_or_equal) / (2 * len(trained) * len(variant)))


def p_two_sided(differences: Floats) -> float:
    """Two-sided bootstrap p-value of "no difference", from resampled differences [n_resamples].

    Twice the smaller share of resamples on the wrong side of 0, each share with 1 added above
    and below (Davison & Hinkley 1997, eq. 4.11), at most 1. It inverts the percentile interval:
    p <= 1 - confidence when the interval leaves out 0, up to that correction.
    """
    n = len(differences)
    shares = [(1 + np.sum(differences <= 0)) / (n + 1), (1 + np.sum(differences >= 0)) / (n + 1)]
    return float(min(1.0, 2 * min(shares)))


def p_equivalence(differences: Floats, margin: float) -> float:
    """P-value of two one-sided tests (TOST, Schuirmann 1987) at +-`margin`.

    The larger of the bootstrap p-values of "difference <= -margin" and "difference >= margin":
    small when the difference lies within the margin.

    Args:
        differences: resampled differences [n_resamples].
        margin: positive, in the metric's unit.
    """
    n = len(differences)
    too_low = (1 + np.sum(differences <= -margin)) / (n + 1)
    too_high = (1 + np.sum(differences >= margin)) / (n + 1)
    return float(max(too_low, too_high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def alpha_of(confidence: float) -> float:
    """The level of tests that goes with a confidence; 1 - 0.9 alone is a little below 0.1."""
    return round(1 - confidence, 12)


def smallest_p_holm(n_resamples: int, family_size: int) -> float:
    """The smallest adjusted p that a family's best contrast can reach with so many resamples."""
    return min(1.0, 2 * family_size / (n_resamples + 1))
