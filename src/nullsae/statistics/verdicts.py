"""What a contrast says, in one of four words; and what a metric's verdicts say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nullsae.config.metrics import METRICS, Metric
from nullsae.config.variants import is_null, is_positive_control
from nullsae.statistics.effects import alpha_of

RULE = (
    "A contrast is equivalent if two one-sided tests place the difference within the margin "
    "(p_equivalence at most 1 - confidence); else, if Holm's p is at most 1 - confidence, it "
    "separates when trained minus null has the sign that the metric should show (or none is "
    "expected) and is reversed when it has the other; in all other cases, and where a number is "
    "missing, it is inconclusive."
)
"""The rule of `verdict` in one sentence."""
CONTROL_RULE = (
    "A positive control is trained like the subject, from another seed: no sign is expected there, "
    "a good metric is equivalent, and one that separates tells two trainings apart."
)
"""How to read the verdicts against a positive control, in one sentence."""
FEWEST_ANSWERED = 0.9
"""A verdict says so where a judge answered about a smaller share of its windows."""
VERDICT_WORDS = ("separates", "reversed", "equivalent", "inconclusive")


def verdict(row: Mapping[str, Any], metric: Metric, confidence: float) -> tuple[str, str]:
    """One of `VERDICT_WORDS` and its reason, from a row of `contrasts` alone, by `RULE`.

    `confidence` is the level of the intervals, e.g. 0.95.
    """
    word, reason = _verdict(row, metric, confidence)
    share = row.get("answered_share")
    if share is not None and share < FEWEST_ANSWERED:
        reason += (
            f"; rests on {share:.0%} of the windows: the judge gave no usable answer about the "
            f"others (n_failed)"
        )
    return word, reason


def _verdict(row: Mapping[str, Any], metric: Metric, confidence: float) -> tuple[str, str]:
    missing = [n for n in ("difference", "p_holm", "p_equivalence") if row[n] is None]
    if missing:
        return "inconclusive", f"no {', '.join(missing)}: {row['reason'] or 'not computed'}"
    alpha = alpha_of(confidence)
    counts = [(row["n_draws"], "draw"), (row["n_seeds"], "seed")]
    of = " x ".join(f"{n} {name}{'s' if n != 1 else ''}" for n, name in counts)
    basis = (
        f"variant minus trained {row['difference']:.4g} "
        f"[{row['difference_low']:.4g}, {row['difference_high']:.4g}] over {of} of the variant "
        f"(the interval speaks of {row['speaks_of']})"
    )
    if row["p_equivalence"] <= alpha:
        test = f"p_equivalence {row['p_equivalence']:.2g} <= {alpha:g}"
        return "equivalent", f"{basis}, within +-{row['equivalence_margin']:g}: {test}"
    if row["p_holm"] <= alpha:
        test = f"p_holm {row['p_holm']:.2g} <= {alpha:g}"
        direction = metric.direction_against(row["variant"])
        if direction not in (0, np.sign(-row["difference"])):
            return "reversed", f"{basis}, against the sign expected: {test}"
        return "separates", f"{basis}, {'the' if direction else 'no'} sign expected: {test}"
    tests = (
        f"p_holm {row['p_holm']:.2g} and p_equivalence {row['p_equivalence']:.2g} > {alpha:g} "
        f"(margin {row['equivalence_margin']:g}); could have seen "
        f"{row['detectable_difference']:.2g} or more"
    )
    return "inconclusive", f"{basis}: {tests}"


def discriminating_power(
    contrasts: Iterable[Mapping[str, Any]], words: Iterable[str]
) -> list[dict[str, Any]]:
    """Rows of `discriminating_power`: what a metric's contrasts of one SAE say together.

    Over all sites and nulls of each subject, metric, explainer, scorer and SAE. Superiority and
    standardized differences are oriented so that more is trained on the expected side; where no
    side is expected, away from no difference. `words` are the verdicts of the contrasts.

    Contrasts with positive controls are counted apart. One without a test does not count there: a
    metric that was never computed must not pass for one that tells no trainings apart.
    """
    keys = ("subject", "sae", "explainer", "scorer", "metric")
    groups: dict[tuple[Any, ...], list[tuple[Mapping[str, Any], str]]] = {}
    for row, word in zip(contrasts, words, strict=True):
        groups.setdefault(tuple(row[key] for key in keys), []).append((row, word))
    found = []
    for group, members in groups.items():
        named = dict(zip(keys, group, strict=True))
        metric = METRICS[named["metric"]]()
        again = [(row, word) for row, word in members if is_positive_control(row["variant"])]
        members = [(row, word) for row, word in members if is_null(row["variant"])]
        directed = [(row, metric.direction_against(row["variant"])) for row, _ in members]
        counts = Counter(word for _, word in members)
        superiority = [
            max(p, 1 - p) if direction == 0 else (p if direction == 1 else 1 - p)
            for row, direction in directed
            if (p := row["probability_of_superiority"]) is not None
        ]
        standardized = [
            abs(d) if direction == 0 else -d * direction
            for row, direction in directed
            if row["standard_error"] is not None
            for d in (row["difference"] / row["standard_error"],)
        ]
        named["n_contrasts"] = len(members)
        named |= {f"n_{word}": counts[word] for word in VERDICT_WORDS}
        named["separates_share"] = counts["separates"] / len(members) if members else None
        medians = {"superiority": superiority, "standardized_difference": standardized}
        for name, numbers in medians.items():
            named[f"median_{name}"] = float(np.median(numbers)) if numbers else None
        found.append(named | _told_from_controls(again))
    return found


def _told_from_controls(contrasts: Iterable[tuple[Mapping[str, Any], str]]) -> dict[str, Any]:
    """The columns of `discriminating_power` about positive controls."""
    counts = Counter(word for row, word in contrasts if row["p_equivalence"] is not None)
    n, n_told = counts.total(), counts["separates"] + counts["reversed"]
    return {
        **{"n_controls": n, "n_controls_told_apart": n_told},
        "n_controls_equivalent": counts["equivalent"],
        "controls_not_told_apart_share": (n - n_told) / n if n else None,
    }
