"""The answer of a study: which metrics tell trained from its nulls, in a few sentences.

Everything here follows from `contrasts` and their verdicts by the rules below; nothing is written
by hand for a study. L0 and training tokens of each arm stand beside its values: both move them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nullsae.config.metrics import METRICS, is_of_model

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
Key = tuple[str, str | None, str | None]
"""Metric, explainer, scorer."""
Judged = tuple[Mapping[str, Any], str]
"""A row of `contrasts` and its verdict."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A metric's values in one arm, and its SAEs: ranges over sites, SAEs and subjects."""

    low: float | None
    """The smallest value; None, as all of these, where there is none."""
    high: float | None
    low_l0: float | None
    high_l0: float | None
    low_training_tokens: float | None
    high_training_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class Against(Arm):
    """A metric's verdicts about the real thing and one other, with the other's numbers."""

    variant: str
    """The variant, or the null dictionary."""
    is_control: bool
    """Whether it is a positive control, such as a retrained model, and no null."""
    verdicts: dict[str, int]
    """How many comparisons got each word."""


@dataclass(frozen=True, kw_only=True)
class Finding(Arm):
    """What a metric says in a study, by one explainer and scorer if it has them.

    Numbers are those of trained.
    """

    metric: str
    title: str
    explainer: str | None
    scorer: str | None
    tier: Tier
    against: tuple[Against, ...]

    @property
    def name(self) -> str:
        """The name of the metric in sentences."""
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
    """The content of `results/tables/answer.json`."""

    sentences: tuple[str, ...]
    findings: tuple[Finding, ...]
    """About models. Best first: by tier, then by the share of nulls and sites told apart."""
    dictionaries: tuple[Finding, ...] = ()
    """About the learned dictionary and null ones within trained, in the same order."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Answer:
        """From what `as_json` gives."""
        findings = (
            tuple(
                Finding(**{**one, "against": tuple(Against(**each) for each in one["against"])})
                for one in data[stage]
            )
            for stage in ("findings", "dictionaries")
        )
        return cls(tuple(data["sentences"]), *findings)

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
    """Derive the answer of a study.

    Args:
        contrasts: rows of `contrasts`.
        words: the verdict of each.
        controls: variants that are positive controls.
        placebos: explainers that exchange explanations; their rows are left out.
    """
    pairs = [
        (row, word)
        for row, word in zip(contrasts, words, strict=True)
        if row["explainer"] not in placebos
    ]
    of_models = [pair for pair in pairs if is_of_model(pair[0])]
    findings = _findings(of_models, "variant", controls)
    of_dictionaries = [pair for pair in pairs if pair[0]["stage"] == "dictionary"]
    dictionaries = _findings(of_dictionaries, "null", ())
    sites = list(dict.fromkeys(row["site"] for row, _ in of_dictionaries))
    sentences = _sentences(findings, dictionaries, [row for row, _ in of_models], controls, sites)
    return Answer(tuple(sentences), tuple(findings), tuple(dictionaries))


def _findings(pairs: Iterable[Judged], column: str, controls: Collection[str]) -> list[Finding]:
    """Best first, without metrics of which no value was measured.

    `column` of a contrast names what the real thing is compared with.
    """
    groups: dict[Key, list[Judged]] = {}
    for row, word in pairs:
        groups.setdefault((row["metric"], row["explainer"], row["scorer"]), []).append((row, word))
    # What the config leaves out, such as causal effects, was measured nowhere.
    groups = {key: members for key, members in groups.items() if _is_measured(members)}
    findings = [_finding(key, members, column, controls) for key, members in groups.items()]
    tiers = list(TIERS)
    return sorted(findings, key=lambda one: (tiers.index(one.tier), -one.separates_share))


def _is_measured(members: Iterable[Judged]) -> bool:
    return any(row[arm] is not None for row, _ in members for arm in ("value", "real_value"))


def _finding(
    key: Key, members: Sequence[Judged], column: str, controls: Collection[str]
) -> Finding:
    metric, explainer, scorer = key
    by_name: dict[str, list[Judged]] = {}
    for row, word in members:
        by_name.setdefault(row[column], []).append((row, word))
    against = tuple(
        Against(
            variant=name,
            is_control=name in controls,
            verdicts=dict(Counter(word for _, word in own)),
            **_arm([row for row, _ in own], ""),
        )
        for name, own in by_name.items()
    )
    return Finding(
        metric=metric,
        title=METRICS[metric].title,
        explainer=explainer,
        scorer=scorer,
        tier=_tier(against),
        against=against,
        **_arm([row for row, _ in members], "real_"),
    )


def _arm(rows: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, float | None]:
    """The numbers of an `Arm`, of the columns with this prefix."""
    found: dict[str, float | None] = {}
    for column, end in (("value", ""), ("l0", "_l0"), ("training_tokens", "_training_tokens")):
        low, high = _range(row[prefix + column] for row in rows)
        found |= {f"low{end}": low, f"high{end}": high}
    return found


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
    findings: Sequence[Finding],
    dictionaries: Sequence[Finding],
    rows: Sequence[Mapping[str, Any]],
    controls: Collection[str],
    sites: Sequence[str],
) -> list[str]:
    """At most six; `sites` are those at which dictionaries are compared."""
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
    # The first score of explanations is what the field reports.
    judged = [one for one in of["does_not_tell"] if one.metric == "auroc"]
    shown = [one for one in (*tells[:1], *judged[:1]) if one.low is not None]
    found += [_values(one) for one in shown[: 1 if dictionaries else 2]]
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
    if dictionaries:
        where = "" if {*sites} == {row["site"] for row in rows} else f" at {_listed(sites)}"
        found.append(_of_dictionaries(dictionaries, tells, where))
    return [*found, _caveat(rows, _arms_text(findings))]


def _of_dictionaries(findings: Sequence[Finding], best: Sequence[Finding], where: str) -> str:
    """Which metrics tell the learned dictionary from null ones; of the best one, from which."""
    n_nulls = len(dict.fromkeys(each.variant for one in findings for each in one.against))
    every = f"each of the {_number(n_nulls)} null dictionaries" if n_nulls > 1 else "the null one"
    tells = [one for one in findings if one.tier == "tells"]
    names = f": {_names(tells)}" if tells else ""
    n = f"{len(findings)} metric{'s' * (len(findings) != 1)}"
    said = (
        f"Within trained{where}, {_number(len(tells)) if tells else 'none'} of {n} "
        f"tell{'s' * (len(tells) < 2)} the learned dictionary from {every}{names}"
    )
    for first in best[:1]:
        for one in findings:
            if one.name == first.name and one.tier != "tells":
                told = [each.variant for each in one.against if {*each.verdicts} == {"separates"}]
                said += f", while {one.name} tells it from {_listed(told) if told else 'none'}"
    return f"{said}."


def _wanted(findings: Iterable[Finding]) -> str:
    """What findings that are not decided lack."""
    words = {word for one in findings for each in one.against for word in each.verdicts}
    lacks = {"inconclusive": "data", "none": "comparable SAEs"}
    return " or of ".join(lack for word, lack in lacks.items() if word in words) or "data"


def _values(one: Finding) -> str:
    """A metric's values in trained and in the others, each with its L0 where these differ."""
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
    """Trained, each positive control, and all nulls together, as sentences call them."""
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
    """A range of arms, such as of `low_l0` and `high_l0`; nothing where there is none."""
    arms = list(arms)
    low, _ = _range(getattr(each, f"low{end}") for each in arms)
    _, high = _range(getattr(each, f"high{end}") for each in arms)
    if low is None or high is None:
        return ""
    return _span(low, high) if end != "_training_tokens" else _span(low, high, ",.0f")


def _arms_text(findings: Iterable[Finding]) -> str:
    """L0 and training tokens of all arms, in brackets: one number where all have it."""
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
    """All comparisons, in words."""
    whom = nulls[0] if len(nulls) == 1 else f"each of the {_number(len(nulls))} nulls"
    sites = list(dict.fromkeys((row["subject"], row["site"]) for row in rows))
    where = {1: sites[0][1], 2: "both sites"}.get(len(sites), f"all {_number(len(sites))} sites")
    return f"{whom} at {where}"


def _names(findings: Sequence[Finding]) -> str:
    names = [one.name for one in findings[:MOST_NAMED]]
    more = len(findings) - len(names)
    return _listed([*names, f"{_number(more)} more"] if more else names)


def _listed(names: Sequence[str]) -> str:
    """Names in a row; between those of metrics, which may have commas, stand semicolons."""
    if len(names) > 2 and any(", " in name for name in names):
        return "; ".join([*names[:-1], f"and {names[-1]}"])
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _caveat(rows: Sequence[Mapping[str, Any]], arms: str) -> str:
    """What the intervals speak of, and what the SAEs of each arm are."""
    n_draws = max(row["n_draws"] for row in rows)
    n_seeds = max(row["n_seeds"] for row in rows)
    if n_draws == 1 and n_seeds == 1:
        return (
            f"Every model was randomized once and every SAE trained once{arms}: this speaks of "
            f"these randomizations, not of random transformers."
        )
    if n_draws == 1:
        return (
            f"Every model was randomized once, with {_number(n_seeds)} seeds of each SAE{arms}: "
            f"this speaks of these randomizations, not of random transformers."
        )
    seeds = "one seed" if n_seeds == 1 else f"{_number(n_seeds)} seeds"
    return (
        f"It rests on {_number(n_draws)} draws of each randomization and {seeds} of each SAE{arms}."
    )
