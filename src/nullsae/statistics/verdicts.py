"""What a contrast says, in one of four words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nullsae.statistics.effects import alpha_of
from nullsae.statistics.metrics import Metric


def verdict(row: Mapping[str, Any], metric: Metric, confidence: float) -> tuple[str, str]:
    """Verdict and its reason, from a row of `contrasts` alone.

    `equivalent` if p_equivalence <= 1 - confidence; else, if p_holm <= 1 - confidence,
    `separates` when trained minus variant has the sign of `metric.direction` (or none is
    expected) and `reversed` when it has the other; `inconclusive` in all other cases, missing
    numbers among them.

    Args:
        row: a row of `contrasts`.
        metric: its metric.
        confidence: level of the intervals, e.g. 0.95.

    Returns:
        One of `separates`, `reversed`, `equivalent`, `inconclusive`; and one sentence.
    """
    missing = [n for n in ("difference", "p_holm", "p_equivalence") if row[n] is None]
    if missing:
        return "inconclusive", f"no {', '.join(missing)}: {row['reason'] or 'not computed'}"
    alpha = alpha_of(confidence)
    basis = _basis(row)
    if row["p_equivalence"] <= alpha:
        test = f"p_equivalence {row['p_equivalence']:.2g} <= {alpha:g}"
        return "equivalent", f"{basis}, within +-{row['equivalence_margin']:g}: {test}"
    if row["p_holm"] <= alpha:
        test = f"p_holm {row['p_holm']:.2g} <= {alpha:g}"
        if metric.direction == 0:
            return "separates", f"{basis}, no sign expected: {test}"
        if np.sign(-row["difference"]) == metric.direction:
            return "separates", f"{basis}, the sign expected: {test}"
        return "reversed", f"{basis}, against the sign expected: {test}"
    tests = (
        f"p_holm {row['p_holm']:.2g} and p_equivalence {row['p_equivalence']:.2g} > {alpha:g} "
        f"(margin {row['equivalence_margin']:g})"
    )
    note = f"; {row['reason']}" if row["reason"] else ""
    return "inconclusive", f"{basis}: {tests}{note}"


def _basis(row: Mapping[str, Any]) -> str:
    """The difference, its interval and what it rests on."""
    counts = [(row["n_draws"], "draw"), (row["n_seeds"], "seed")]
    of = " x ".join(f"{n} {name}{'s' if n != 1 else ''}" for n, name in counts)
    return (
        f"variant minus trained {row['difference']:.4g} "
        f"[{row['difference_low']:.4g}, {row['difference_high']:.4g}] over {of} of the variant"
    )
