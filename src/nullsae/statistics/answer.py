"""What a study answers: which metrics tell trained from its nulls, in a few sentences.

Everything here follows from `contrasts` and their verdicts by the rules below; nothing is written
by hand for a study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nullsae.config.metrics import METRICS

Tier = Literal["tells", "does_not_tell", "undecided"]

TIERS: dict[Tier, str] = {
    "tells": "Tell trained from every null",
    "does_not_tell": "Do not tell",
    "undecided": "Not decided",
}
"""The tiers in display order, in words."""
TIER_RULE = (
    "A metric tells if its verdict is `separates` for every null, site, SAE and subject, and "
    "`equivalent` for a retrained model, where there is one. It does not tell if a null is "
    "`equivalent` or `reversed`, or if a retrained model is told apart, too. Otherwise the study "
    "does not decide: a verdict is `inconclusive`, or `none` because arms are not comparable."
)
MOST_NAMED = 4
"""Metrics that a sentence names; it counts the rest."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
APART = ("separates", "reversed")
"""The verdicts that say that two models differ."""


@dataclass(frozen=True)
class Against:
    """What a metric says about trained and one other variant."""

    variant: str
    is_control: bool
    """Whether it is a positive control, such as a retrained model, and no null."""
    verdicts: dict[str, int]
    """How many comparisons got each word."""
    low: float | None
    """The smallest of the variant's values over sites, SAEs and subjects."""
    high: float | None


@dataclass(frozen=True)
class Finding:
    """What a metric, by one explainer and scorer where it has them, says in a study."""

    metric: str
    title: str
    explainer: str | None
    scorer: str | None
    tier: Tier
    low: float | None
    """The smallest of trained's values over sites, SAEs and subjects."""
    high: float | None
    against: tuple[Against, ...]

    @property
    def name(self) -> str:
        """The metric as sentences call it."""
        # An axis needs the unit, a sentence does not.
        title = self.title.partition(" (")[0]
        return f"{title} ({self.explainer}, {self.scorer})" if self.scorer else title

    @property
    def nulls(self) -> list[Against]:
        """What it says about nulls."""
        return [one for one in self.against if not one.is_control]

    @property
    def controls(self) -> list[Against]:
        """What it says about positive controls."""
        return [one for one in self.against if one.is_control]

    @property
    def separates_share(self) -> float:
        """The share of comparisons with nulls that separate, of those that have a verdict."""
        counts = sum((Counter(one.verdicts) for one in self.nulls), Counter[str]())
        return counts["separates"] / max(1, counts.total() - counts["none"])


@dataclass(frozen=True)
class Answer:
    """What `results/tables/answer.json` holds."""

    sentences: tuple[str, ...]
    findings: tuple[Finding, ...]
    """Best first: by tier, then by the share of nulls and sites that are told apart."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Answer:
        """From what `as_json` gives."""
        findings = [
            Finding(**{**one, "against": tuple(Against(**each) for each in one["against"])})
            for one in data["findings"]
        ]
        return cls(tuple(data["sentences"]), tuple(findings))

    def tier(self, tier: Tier) -> list[Finding]:
        """The findings of a tier, best first."""
        return [one for one in self.findings if one.tier == tier]


def answer(
    contrasts: Sequence[Mapping[str, Any]],
    words: Sequence[str],
    *,
    controls: Collection[str] = (),
    placebos: Collection[str] = (),
) -> Answer:
    """The answer of a study.

    Args:
        contrasts: rows of `contrasts`.
        words: the verdict of each.
        controls: variants that are positive controls.
        placebos: explainers that exchange explanations. Their rows say what a judge makes of
            nothing, and are no answer.
    """
    groups: dict[tuple[str, str | None, str | None], list[tuple[Mapping[str, Any], str]]] = {}
    rows = []
    for row, word in zip(contrasts, words, strict=True):
        if row["explainer"] not in placebos:
            rows.append(row)
            key = (row["metric"], row["explainer"], row["scorer"])
            groups.setdefault(key, []).append((row, word))
    findings = [_finding(key, members, controls) for key, members in groups.items()]
    tiers = list(TIERS)
    findings.sort(key=lambda one: (tiers.index(one.tier), -one.separates_share))
    return Answer(tuple(_sentences(findings, rows, controls)), tuple(findings))


def _finding(
    key: tuple[str, str | None, str | None],
    members: Iterable[tuple[Mapping[str, Any], str]],
    controls: Collection[str],
) -> Finding:
    members = list(members)
    metric, explainer, scorer = key
    by_variant: dict[str, list[tuple[Mapping[str, Any], str]]] = {}
    for row, word in members:
        by_variant.setdefault(row["variant"], []).append((row, word))
    against = tuple(
        Against(
            variant,
            variant in controls,
            dict(Counter(word for _, word in own)),
            *_range(row["value"] for row, _ in own),
        )
        for variant, own in by_variant.items()
    )
    found = _range(row["real_value"] for row, _ in members)
    return Finding(
        metric, METRICS[metric].title, explainer, scorer, _tier(against), *found, against
    )


def _tier(against: Iterable[Against]) -> Tier:
    """By `TIER_RULE`."""
    nulls, controls = Counter[str](), Counter[str]()
    for one in against:
        (controls if one.is_control else nulls).update(one.verdicts)
    if nulls["equivalent"] or nulls["reversed"] or any(controls[word] for word in APART):
        return "does_not_tell"
    is_whole = nulls.total() > 0 and nulls.keys() == {"separates"}
    return "tells" if is_whole and controls.keys() <= {"equivalent"} else "undecided"


def _range(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    present = [value for value in values if value is not None]
    return (min(present), max(present)) if present else (None, None)


def _sentences(
    findings: Sequence[Finding], rows: Sequence[Mapping[str, Any]], controls: Collection[str]
) -> list[str]:
    """At most six."""
    if not findings:
        return ["No metric was computed, so the study has no answer."]
    nulls = list(dict.fromkeys(row["variant"] for row in rows if row["variant"] not in controls))
    of = {tier: [one for one in findings if one.tier == tier] for tier in TIERS}
    every = _every(nulls, rows)
    retrained = [one for one in dict.fromkeys(row["variant"] for row in rows) if one in controls]
    but = f", and not from {' or '.join(retrained)}" if retrained else ""
    n = f"{len(findings)} metric{'s' * (len(findings) != 1)}"
    if tells := of["tells"]:
        found = [
            f"{_number(len(tells)).capitalize()} of {n} tell{'s' * (len(tells) == 1)} trained from "
            f"{every}{but}: {_names(tells)}."
        ]
    else:
        found = [f"None of {n} tells trained from {every}{but}."]
    shown = [one for one in (*tells[:1], *_judged(of["does_not_tell"])) if one.low is not None]
    found += [_values(one) for one in shown[:2]]
    if fails := of["does_not_tell"]:
        found.append(
            f"{_number(len(fails)).capitalize()} {'does' if len(fails) == 1 else 'do'} not: "
            f"{_names(fails)}."
        )
    if open_ := of["undecided"]:
        found.append(
            f"{_number(len(open_)).capitalize()} {'is' if len(open_) == 1 else 'are'} not decided, "
            f"for want of {_wanted(open_)}: {_names(open_)}."
        )
    return [*found, _caveat(rows)]


def _wanted(findings: Iterable[Finding]) -> str:
    """What findings that are not decided lack."""
    words = {word for one in findings for each in one.against for word in each.verdicts}
    lacks = {"inconclusive": "data", "none": "comparable SAEs"}
    return " or of ".join(lack for word, lack in lacks.items() if word in words) or "data"


def _judged(findings: Iterable[Finding]) -> list[Finding]:
    """The first score of explanations among them: what the field reports."""
    return [one for one in findings if one.metric == "auroc"][:1]


def _values(one: Finding) -> str:
    """A metric's values in trained and in the others."""
    parts = [f"{_span(one.low, one.high)} in trained"]
    parts += [
        f"{_span(each.low, each.high)} in {each.variant}"
        for each in one.controls
        if each.low is not None
    ]
    lows = [each.low for each in one.nulls if each.low is not None]
    highs = [each.high for each in one.nulls if each.high is not None]
    if lows and highs:
        parts.append(f"{_span(min(lows), max(highs))} in the null{'s' * (len(one.nulls) != 1)}")
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{one.name} is {listed}."


def _span(low: float | None, high: float | None) -> str:
    low_text, high_text = f"{low:.3g}", f"{high:.3g}"
    return low_text if low_text == high_text else f"{low_text} to {high_text}"


def _every(nulls: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """All comparisons, in words."""
    whom = nulls[0] if len(nulls) == 1 else f"each of the {_number(len(nulls))} nulls"
    sites = list(dict.fromkeys((row["subject"], row["site"]) for row in rows))
    where = {1: sites[0][1], 2: "both sites"}.get(len(sites), f"all {_number(len(sites))} sites")
    return f"{whom} at {where}"


def _names(findings: Sequence[Finding]) -> str:
    names = [one.name for one in findings[:MOST_NAMED]]
    if more := len(findings) - len(names):
        names.append(f"{_number(more)} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _caveat(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals speak of."""
    n_draws = max(row["n_draws"] for row in rows)
    n_seeds = max(row["n_seeds"] for row in rows)
    if n_draws == 1 and n_seeds == 1:
        return (
            "Every model was randomized once and every SAE trained once: this speaks of these "
            "randomizations, not of random transformers."
        )
    if n_draws == 1:
        return (
            f"Every model was randomized once, with {_number(n_seeds)} seeds of each SAE: this "
            f"speaks of these randomizations, not of random transformers."
        )
    seeds = "one seed" if n_seeds == 1 else f"{_number(n_seeds)} seeds"
    return f"It rests on {_number(n_draws)} draws of each randomization and {seeds} of each SAE."
