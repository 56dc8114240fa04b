"""Verdicts: what a contrast says in one word, and what a metric's verdicts say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nullsae.config.metrics import METRICS, Metric, is_defined
from nullsae.config.variants import is_null, is_positive_control
from nullsae.statistics.contrasts import THIS_DRAW, THIS_RETRAINING
from nullsae.statistics.effects import alpha_of

RULE = (
    "A contrast separates if its difference is beyond the margin on the side that the metric "
    "expects for this null, or on either side if it expects none. It is reversed if beyond the "
    "margin on the other side. Both require the interval, not only the difference, to be beyond it "
    "(a minimum-effect test). It is equivalent if the difference is within the margin (two "
    "one-sided tests). Both tests are at 1 - confidence, Holm-corrected in the family that the "
    "table names. It is inconclusive in all other cases, and if a number is missing. None: the "
    "arms are not comparable, or the null is sampled without a model and the metric has no value "
    "on it."
)
"""A short statement of the rule that `verdict` applies."""
CONTROL_RULE = (
    "A positive control is trained like the subject, from another seed. A good metric finds it "
    "equivalent; one that separates tells two trainings of one recipe apart."
)
"""How to read the verdicts against a positive control."""
FEWEST_ANSWERED = 0.9
"""Verdicts mention it if a judge answered about a smaller share of its windows."""
VERDICT_WORDS = ("separates", "reversed", "equivalent", "inconclusive", "none")


def verdict(row: Mapping[str, Any], metric: Metric, confidence: float) -> tuple[str, str]:
    """Return one of `VERDICT_WORDS` and its reason from a row of `contrasts`, by `RULE`.

    `confidence` is the level of the intervals, e.g. 0.95.
    """
    word, reason = _verdict(row, metric, confidence)
    share = row.get("answered_share")
    if share is not None and share < FEWEST_ANSWERED:
        reason += (
            f"; rests on {share:.0%} of the windows: the judge gave no usable answer about the "
            f"others (n_failed)"
        )
    return word, f"{row['scope']}: {reason}"


def _verdict(row: Mapping[str, Any], metric: Metric, confidence: float) -> tuple[str, str]:
    variant = row.get("variant")  # none in contrasts of people's own numbers
    if variant and not is_defined(metric.name, variant):
        sampled = f"{variant}, which is sampled without a model"
        return "none", f"no verdict: {metric.name} has no value on {sampled}"
    if row["not_comparable"] is not None:
        return "none", f"no verdict: {row['not_comparable']}"
    if None in (row["difference"], row["is_beyond_margin"], row["is_within_margin"]):
        what = "no difference" if row["difference"] is None else "not tested"
        return "inconclusive", f"{what}: {row['reason'] or 'not computed'}"
    counts = [(row["n_draws"], "draw"), (row["n_seeds"], "seed")]
    of = " x ".join(f"{n} {name}{'s' if n != 1 else ''}" for n, name in counts)
    basis = (
        f"{row['null']} minus {row['real']} {row['difference']:.4g} "
        f"[{row['difference_low']:.4g}, {row['difference_high']:.4g}] over {of} of {row['null']} "
        f"(the interval generalizes to {row['speaks_of']})"
    )
    margin = f"the margin ±{row['margin']:.3g} ({row['margin_rule']})"
    level = f"at {alpha_of(confidence):g}, Holm-corrected over {row['n_family']}"
    if row["is_within_margin"]:
        found = _p(row["p_equivalence_holm"])
        return "equivalent", f"{basis}, within {margin}: equivalence test {level}{found}"
    if row["is_beyond_margin"]:
        test = f"minimum-effect test {level}{_p(row['p_minimum_effect_holm'])}"
        direction = metric.direction_at(row["stage"], row["null"])
        if direction not in (0, np.sign(-row["difference"])):
            return "reversed", f"{basis}, beyond {margin} on the unexpected side: {test}"
        side = "on the expected side" if direction else "no side expected"
        return "separates", f"{basis}, beyond {margin}, {side}: {test}"
    return "inconclusive", (
        f"{basis}: neither beyond nor within {margin} {level}; could have detected "
        f"{row['detectable_difference']:.2g} or more"
    )


def _p(value: float | None) -> str:
    """Format a corrected p-value, if there is one."""
    return "" if value is None else f", p {value:.2g}"


def replication_note(verdicts: Iterable[Mapping[str, Any]]) -> str | None:
    """Return a note to put above the verdicts of a study without replication; None with it."""
    rows = list(verdicts)
    found = {row["scope"] for row in rows}
    is_replicated = any(row["is_replicated"] for row in rows)
    # A single retraining next to several draws is named only in its own column.
    if not rows or (THIS_DRAW not in found and is_replicated):
        return None
    seeds = "" if is_replicated else " and one seed"
    once = [scope for scope in (THIS_DRAW, THIS_RETRAINING) if scope in found] or [THIS_DRAW]
    return (
        f"One draw{seeds}: each verdict is about {' or '.join(once)} and its SAEs, not about "
        f"{'random transformers' if THIS_DRAW in once else 'other seeds'} in general. "
        f"config/replicated.yaml runs the default study with 5 draws and 3 seeds."
    )


def discriminating_power(
    contrasts: Iterable[Mapping[str, Any]], words: Iterable[str]
) -> list[dict[str, Any]]:
    """Make rows of `discriminating_power`: what a metric's contrasts of one SAE say together.

    One row covers all sites and nulls of a subject, metric, explainer, scorer and SAE, without
    nulls on which the metric has no value. Superiority and standardized differences are oriented so
    that larger values mean trained on the expected side; if no side is expected, they measure the
    distance from no difference. Contrasts without replication have no standardized difference.
    `words` are the verdicts of the contrasts.

    Contrasts with positive controls are counted separately, and only if they were tested. Otherwise
    a metric that was never computed would pass for one that tells no trainings apart.
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
        members = [
            (row, word)
            for row, word in members
            if is_null(row["variant"]) and is_defined(row["metric"], row["variant"])
        ]
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
            if row["standard_error"] is not None and row["is_replicated"]
            for d in (row["difference"] / row["standard_error"],)
        ]
        named["n_contrasts"] = len(members)
        named |= {f"n_{word}": counts[word] for word in VERDICT_WORDS}
        n_judged = len(members) - counts["none"]
        named["separates_share"] = counts["separates"] / n_judged if n_judged else None
        medians = {"superiority": superiority, "standardized_difference": standardized}
        for name, numbers in medians.items():
            named[f"median_{name}"] = float(np.median(numbers)) if numbers else None
        found.append(named | _told_from_controls(again))
    return found


def _told_from_controls(contrasts: Iterable[tuple[Mapping[str, Any], str]]) -> dict[str, Any]:
    """Compute the columns of `discriminating_power` about positive controls."""
    counts = Counter(word for row, word in contrasts if row["is_within_margin"] is not None)
    n, n_told = counts.total(), counts["separates"] + counts["reversed"]
    return {
        **{"n_controls": n, "n_controls_told_apart": n_told},
        "n_controls_equivalent": counts["equivalent"],
        "controls_not_told_apart_share": (n - n_told) / n if n else None,
    }
