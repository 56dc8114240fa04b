"""The answer of a study in words, derived from the findings of each metric."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from nullsae.config.metrics import METRICS
from nullsae.statistics.findings import TIERS, Against, Arm, Finding, extent

MOST_NAMED = 4
"""Metrics that a sentence names; it counts the rest."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def sentences_of(
    findings: Sequence[Finding],
    dictionaries: Sequence[Finding],
    rows: Sequence[Mapping[str, Any]],
    controls: Collection[str],
    sites: Sequence[str],
) -> list[str]:
    """Write at most six sentences.

    Args:
        findings: about models, best first.
        dictionaries: about learned against null dictionaries within trained, best first.
        rows: the contrasts that `findings` summarize.
        controls: variants that are positive controls.
        sites: where dictionaries are compared.
    """
    if not findings:
        if not dictionaries:
            return ["No metric was computed, so the study has no answer."]
        said = _of_dictionaries(dictionaries, (), f" at {_listed(sites)}")
        return [said, "It says nothing about models: none was compared with trained."]
    nulls = list(dict.fromkeys(row["variant"] for row in rows if row["variant"] not in controls))
    of = {tier: [one for one in findings if one.tier == tier] for tier in TIERS}
    every = _every(nulls, rows)
    retrained = [one for one in dict.fromkeys(row["variant"] for row in rows) if one in controls]
    tells, singular = of["tells"], len(of["tells"]) < 2
    but = f" and find{'s' * singular} it equivalent to {_listed(retrained)}" if retrained else ""
    n = f"{len(findings)} metric{'s' * (len(findings) != 1)}"
    found = [
        f"{_number(len(tells)).capitalize() if tells else 'None'} of {n} "
        f"distinguish{'es' * singular} trained from {every}{but}"
        f"{f': {_names(tells)}' if tells else ''}{_not_on(tells, nulls)}."
    ]
    # The first score of explanations is what the field reports.
    judged = [one for one in of["does_not_tell"] if one.metric == "auroc"]
    shown = [one for one in (*tells[:1], *judged[:1]) if one.low is not None]
    found += [_values(one) for one in shown[: 1 if dictionaries else 2]]
    if fails := _usual_first(of["does_not_tell"]):
        found.append(
            f"{_number(len(fails)).capitalize()} fail{'s' * (len(fails) == 1)} this test: "
            f"{_names(fails)}."
        )
    if open_ := _usual_first(of["undecided"]):
        found.append(
            f"{_number(len(open_)).capitalize()} {'is' if len(open_) == 1 else 'are'} undecided "
            f"for lack of {_wanted(open_)}: {_names(open_)}."
        )
    if dictionaries:
        where = "" if {*sites} == {row["site"] for row in rows} else f" at {_listed(sites)}"
        found.append(_of_dictionaries(dictionaries, tells, where))
    return [*found, _caveat(rows, _arms_text(findings))]


def _of_dictionaries(findings: Sequence[Finding], best: Sequence[Finding], where: str) -> str:
    """State which metrics distinguish the learned dictionary, and what the best one does."""
    n_nulls = len(dict.fromkeys(each.variant for one in findings for each in one.against))
    every = f"each of the {_number(n_nulls)} null dictionaries" if n_nulls > 1 else "the only null"
    tells = [one for one in findings if one.tier == "tells"]
    names = f": {_names(tells)}" if tells else ""
    n = f"{len(findings)} metric{'s' * (len(findings) != 1)}"
    said = (
        f"Within trained{where}, {_number(len(tells)) if tells else 'none'} of {n} "
        f"distinguish{'es' * (len(tells) < 2)} the learned dictionary from {every}{names}."
    )
    for first in best[:1]:
        for one in findings:
            if one.name == first.name and one.tier != "tells":
                told = [each.variant for each in one.against if {*each.verdicts} == {"separates"}]
                only = f"only from {_listed(told)}" if told else "from none"
                said += f" {one.name} distinguishes it {only}."
    return said


def _not_on(findings: Sequence[Finding], nulls: Sequence[str]) -> str:
    """Name nulls on which some of the metrics have no value."""
    found = ""
    for null in nulls:
        others = [
            one
            for one in findings
            if any(each.variant == null and not each.is_defined for each in one.against)
        ]
        if others:
            have = f"{_names(others)} {'has' if len(others) == 1 else 'have'} "
            have = have if len(others) < len(findings) else ""
            found += f" ({have}no value on {null}, sampled without a model)"
    return found


def _usual_first(findings: Iterable[Finding]) -> list[Finding]:
    """Put the metrics that papers usually report first, since readers look for them."""
    return sorted(findings, key=lambda one: not METRICS[one.metric].is_usual)


def _wanted(findings: Iterable[Finding]) -> str:
    """Name what undecided findings lack."""
    compared = [each for one in findings for each in one.against if each.is_defined]
    words = {word for each in compared for word in each.verdicts}
    lacks = {"inconclusive": "data", "none": "comparable SAEs"}
    return " or of ".join(lack for word, lack in lacks.items() if word in words) or "data"


def _values(one: Finding) -> str:
    """State a metric's values in trained and the others, each with its L0 if these differ."""
    arms = _by_arm([one])
    spans = {name: _span_of(found, "") for name, found in arms.items()}
    l0s = {name: _span_of(found, "_l0") for name, found in arms.items()}
    differ = len(set(l0s.values())) > 1
    listed = [
        f"{span} in {name}" + (f" (L0 {l0s[name]})" if differ else "")
        for name, span in spans.items()
        if span
    ]
    return f"{one.name} is {_listed(listed)}."


def _by_arm(findings: Iterable[Finding]) -> dict[str, list[Arm]]:
    """Group findings under the names used in sentences: trained, each control, all nulls."""
    found: dict[str, list[Arm]] = {"trained": []}
    nulls: list[Against] = []
    for one in findings:
        found["trained"].append(one)
        for each in one.controls:
            found.setdefault(each.variant, []).append(each)
        nulls += one.nulls
    name = "the nulls" if len({each.variant for each in nulls}) > 1 else "the null"
    return found | ({name: [*nulls]} if nulls else {})


def _span_of(arms: Iterable[Arm], end: str) -> str:
    """Format a range over arms, e.g. of `low_l0` and `high_l0`; empty if there is none."""
    arms = list(arms)
    low, _ = extent(getattr(each, f"low{end}") for each in arms)
    _, high = extent(getattr(each, f"high{end}") for each in arms)
    if low is None or high is None:
        return ""
    return _span(low, high) if end != "_training_tokens" else _span(low, high, ",.0f")


def _arms_text(findings: Iterable[Finding]) -> str:
    """Give L0 and training tokens of all arms in brackets, one number if all arms agree."""
    arms, parts = _by_arm(findings), []
    for name, end in (("L0", "_l0"), ("training tokens", "_training_tokens")):
        spans = {arm: text for arm, found in arms.items() if (text := _span_of(found, end))}
        if len(set(spans.values())) > 1:
            parts.append(f"{name} {_listed([f'{text} in {arm}' for arm, text in spans.items()])}")
        elif spans:
            parts.append(f"{name} {spans.popitem()[1]} in every arm")
    return f" ({'; '.join(parts)})" if parts else ""


def _span(low: float, high: float, form: str = ".3g") -> str:
    low_text, high_text = f"{low:{form}}", f"{high:{form}}"
    return low_text if low_text == high_text else f"{low_text} to {high_text}"


def _every(nulls: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Name all comparisons."""
    whom = nulls[0] if len(nulls) == 1 else f"each of the {_number(len(nulls))} nulls"
    sites = list(dict.fromkeys((row["subject"], row["site"]) for row in rows))
    where = {1: sites[0][1], 2: "both sites"}.get(len(sites), f"all {_number(len(sites))} sites")
    return f"{whom} at {where}"


def _names(findings: Sequence[Finding]) -> str:
    names = [one.name for one in findings[:MOST_NAMED]]
    more = len(findings) - len(names)
    return _listed([*names, f"{_number(more)} more"] if more else names)


def _listed(names: Sequence[str]) -> str:
    """Join names; semicolons separate them if names of metrics contain commas."""
    if len(names) > 2 and any(", " in name for name in names):
        return "; ".join([*names[:-1], f"and {names[-1]}"])
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _caveat(rows: Sequence[Mapping[str, Any]], arms: str) -> str:
    """State what the intervals generalize to, and the L0 and training tokens of each arm."""
    n_draws = max(row["n_draws"] for row in rows)
    n_seeds = max(row["n_seeds"] for row in rows)
    if n_draws == 1 and n_seeds == 1:
        return (
            f"Every model was randomized once and every SAE trained once{arms}, so the answer is "
            f"about these randomizations, not about random transformers in general."
        )
    if n_draws == 1:
        return (
            f"Every model was randomized once, with {_number(n_seeds)} seeds of each SAE{arms}, so "
            f"the answer is about these randomizations, not about random transformers in general."
        )
    seeds = "one seed" if n_seeds == 1 else f"{_number(n_seeds)} seeds"
    return (
        f"The answer rests on {_number(n_draws)} draws of each randomization and {seeds} of each "
        f"SAE{arms}."
    )
