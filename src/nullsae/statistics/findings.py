"""What each metric says about the real thing and its nulls: counts of verdicts, value ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nullsae.config.metrics import METRICS, is_defined

Tier = Literal["tells", "does_not_tell", "undecided"]

TIERS: dict[Tier, str] = {
    "tells": "Distinguish trained from every null",
    "does_not_tell": "Do not distinguish",
    "undecided": "Undecided",
}
"""Title of each tier, in display order."""
TIER_RULE = (
    "A metric distinguishes trained if its verdict is `separates` for every null, site, SAE and "
    "subject, and `equivalent` for any retrained model. It does not if a null is `equivalent` or "
    "`reversed`, or if a retrained model is told apart too. Otherwise it is undecided: a verdict "
    "is `inconclusive`, or `none` because the arms are not comparable. A null that is sampled "
    "without a model (`gaussian`) does not count for metrics that have no value on it. Null "
    "dictionaries do not count as SAEs here: they are compared with the learned ones within "
    "trained."
)
APART = ("separates", "reversed")
"""The verdicts that two models differ."""
Key = tuple[str, str | None, str | None]
"""Metric, explainer, scorer."""
Judged = tuple[Mapping[str, Any], str]
"""A row of `contrasts` and its verdict."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A metric's values in one arm, and its SAEs: ranges over sites, SAEs and subjects."""

    low: float | None
    """The smallest value. This field and the following ones are None if there is no value."""
    high: float | None
    low_l0: float | None
    high_l0: float | None
    low_training_tokens: float | None
    high_training_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class Against(Arm):
    """A metric's verdicts about the real thing and one alternative, with the latter's numbers."""

    variant: str
    """The variant, or the null dictionary."""
    is_control: bool
    """Whether it is a positive control, such as a retrained model, rather than a null."""
    verdicts: dict[str, int]
    """How many comparisons got each verdict."""
    is_defined: bool = True
    """Whether the metric can have a value on it, as it must to count."""


@dataclass(frozen=True, kw_only=True)
class Finding(Arm):
    """What a metric says in a study, for one explainer and scorer if it has them.

    The inherited numbers are those of trained.
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
        # Axes need the unit; sentences do not.
        title = self.title.partition(" (")[0]
        return f"{title} ({self.explainer}, {self.scorer})" if self.scorer else title

    @property
    def nulls(self) -> list[Against]:
        """The nulls that it was compared with."""
        return [one for one in self.against if not one.is_control]

    @property
    def controls(self) -> list[Against]:
        """The positive controls that it was compared with."""
        return [one for one in self.against if one.is_control]

    @property
    def separates_share(self) -> float:
        """The share of comparisons with nulls that separate, among those with a verdict."""
        counts = sum((Counter(one.verdicts) for one in self.nulls), Counter[str]())
        return counts["separates"] / max(1, counts.total() - counts["none"])


def findings_of(pairs: Iterable[Judged], column: str, controls: Collection[str]) -> list[Finding]:
    """Summarize verdicts by metric, explainer and scorer, best first.

    Metrics that are not measured are left out. `column` of a contrast names what the real thing is
    compared with.
    """
    groups: dict[Key, list[Judged]] = {}
    for row, word in pairs:
        groups.setdefault((row["metric"], row["explainer"], row["scorer"]), []).append((row, word))
    # What the config leaves out, such as causal effects, has no values anywhere.
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
            is_defined=any(is_defined(metric, row["variant"]) for row, _ in own),
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
    """Return the numbers of an `Arm` from the columns with this prefix."""
    found: dict[str, float | None] = {}
    for column, end in (("value", ""), ("l0", "_l0"), ("training_tokens", "_training_tokens")):
        low, high = extent(row[prefix + column] for row in rows)
        found |= {f"low{end}": low, f"high{end}": high}
    return found


def _tier(against: Iterable[Against]) -> Tier:
    """Apply `TIER_RULE`."""
    nulls, controls = Counter[str](), Counter[str]()
    for one in filter(lambda one: one.is_defined, against):
        (controls if one.is_control else nulls).update(one.verdicts)
    if nulls["equivalent"] or nulls["reversed"] or any(controls[word] for word in APART):
        return "does_not_tell"
    is_whole = nulls.total() > 0 and nulls.keys() == {"separates"}
    return "tells" if is_whole and controls.keys() <= {"equivalent"} else "undecided"


def extent(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Return the smallest and the largest value, ignoring None."""
    present = [value for value in values if value is not None]
    return (min(present), max(present)) if present else (None, None)
