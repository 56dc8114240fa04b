"""Contrasts and verdicts on scores of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, PositiveFloat

from nullsae.aggregation.arms import differences
from nullsae.api.arguments import whole
from nullsae.config.metrics import METRICS, Direction, Metric, Stage
from nullsae.config.parse import parse_section
from nullsae.config.statistics import Statistics
from nullsae.config.variants import VARIANTS
from nullsae.core.errors import UserError
from nullsae.statistics import verdicts
from nullsae.statistics.bootstrap import Arm, ArmCell, Floats, Resampler
from nullsae.statistics.components import seed_variance
from nullsae.statistics.contrasts import Estimate, adjust, contrast_row, estimate, scope_of
from nullsae.statistics.permutation import Permuter
from nullsae.statistics.spread import SeedVariance

Unit = Literal["latent", "document"]
Scores = ArrayLike | Sequence[ArrayLike] | Mapping[tuple[int, int], ArrayLike]
"""[n_units] for one SAE; for several, a sequence of these, or these by (draw, seed)."""
TABLES: dict[Unit, str] = {"latent": "scores", "document": "documents"}


class GivenMargin(Statistics):
    """Settings with a margin in the unit of the scores."""

    given: Annotated[PositiveFloat, Field(alias="margin")]

    def absolute_margin(self, metric: str) -> float | None:
        return self.given

    def margin_rule(self, metric: str, real: str = "trained") -> str:
        return f"{self.given:g}, as given"


class ScoresMetric(Metric):
    """A metric that is the mean of a score over units."""

    def __init__(self, metric: Metric | None, unit: Unit, direction: Direction) -> None:
        """Describe the score; `metric` is None if nullsae does not know it."""
        self.name = "scores" if metric is None else metric.name
        self.floor = float("-inf") if metric is None else metric.floor
        self.table, self.columns, self.direction = TABLES[unit], ("score",), direction

    def direction_at(self, stage: Stage, null: str) -> Direction:
        return self.direction


@dataclass(frozen=True)
class Contrast:
    """A null compared with the real thing, before any correction for other contrasts."""

    metric: Metric
    statistics: Statistics
    tested: Mapping[str, Any]
    """Columns of the table `contrasts`, as `adjust` takes them."""

    @property
    def row(self) -> dict[str, Any]:
        """Columns of the table `contrasts` (docs/statistics.md), as for a family of one.

        Columns starting with `real_` are about the real thing. P-values are None without
        replication, because they would describe only the units of two SAEs.
        """
        return _family([self])[0]

    @property
    def difference(self) -> float | None:
        """Mean score of the null minus that of the real thing."""
        found: float | None = self.tested["difference"]
        return found

    @property
    def interval(self) -> tuple[float, float] | None:
        """Interval of the difference at `statistics.confidence`; if None, see `reason`."""
        low, high = (self.tested.get(f"difference_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    @property
    def reason(self) -> str | None:
        """Why a number is None."""
        found: str | None = self.tested["reason"]
        return found


class Verdict(NamedTuple):
    """The conclusion from a contrast."""

    word: str
    """`separates`, `reversed`, `equivalent` or `inconclusive`."""
    reason: str
    """The numbers behind it and the rule, in one line."""


def contrast(
    real: Scores,
    null: Scores,
    unit: Unit = "latent",
    metric: str | None = None,
    *,
    margin: float | None = None,
    direction: Direction | None = None,
    paired: bool = False,
    names: tuple[str, str] = ("real", "null"),
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Contrast:
    """Compare the mean score of a null with that of the real thing, as a study's tables do.

    The interval, the minimum-effect test and the equivalence test are those of docs/statistics.md:
    over whole draws or seeds if there are several, else over units. The variance of seeds is pooled
    over both arms.

    Args:
        real: scores of the real thing, floats [n_units] of one SAE, or a sequence of such arrays
            for several seeds.
        null: scores of the null, [n_units], or a sequence of such arrays for several draws. Either
            may be a mapping from (draw, seed) to [n_units].
        unit: `latent`: units of different arrays are independent and may differ in number.
            `document`: the i-th score of every array is about the same document.
        metric: a metric of docs/metrics.md that is a mean over these units, such as `auroc`. It
            supplies the margin (a share of |real - floor|) and the direction if not given.
        margin: differences below it count as none, in the unit of the scores.
        direction: the expected sign of real minus null; 0 if either is possible. Without a metric
            the default is 1.
        paired: whether the i-th latents of real and null are the same, as when two explanations
            are scored on the same latents. Documents always are.
        names: names of real and null in reasons. If the null has the name of a variant, the
            direction is the one that the metric expects for that variant.
        confidence: of the interval; the level of the tests is 1 - confidence.
        n_resamples: of the bootstrap and the permutation test.
        seed: of both.

    Returns:
        The contrast; `verdict` turns it into a verdict.

    Raises:
        UserError: neither a metric nor a margin is given, the metric is unknown or not a mean over
            these units, or scores have the wrong shape, are not finite, or are not paired.
    """
    about = _metric(metric, unit, direction, names[1])
    own = _arm(real, names[0], unit, "seed")
    other = _arm(null, names[1], unit, "draw")
    if margin is None and metric is None:
        raise UserError("contrast: margin: missing; give a margin, or a metric that has one")
    settings: dict[str, Any] = {"n_resamples": n_resamples, "confidence": confidence}
    if margin is None:
        statistics = parse_section(Statistics, settings, where="contrast")
    else:
        statistics = parse_section(GivenMargin, {**settings, "margin": margin}, where="contrast")
    if unit == "document" or paired:
        _check_paired(own, other, unit, names)
    seed = whole(seed, "contrast: seed")
    resampler = Resampler(seed, n_resamples)
    seeds = seed_variance((own, other), resampler)

    def estimated(arm: Arm, seeds: SeedVariance | None = None) -> Estimate:
        return estimate(arm, about, statistics, resampler, seeds)

    is_paired = paired and unit == "latent"
    row = contrast_row(
        estimated(own, seeds),
        estimated(other, seeds),
        about,
        statistics,
        Permuter(seed, n_resamples),
        names=names,
        differences=estimated(differences(own, other)) if is_paired else None,
    )
    scope = scope_of(names[1] if names[1] in VARIANTS else None, other)
    # The metric has its direction at any stage.
    row |= {"metric": about.name, "stage": "model", "scope": scope, "not_comparable": None}
    return Contrast(about, statistics, row)


def verdict(contrast: Contrast, family: Sequence[Contrast] = ()) -> Verdict:
    """Turn a contrast into a verdict, by the rule of a study's table `verdicts`.

    Both tests are corrected by Holm's procedure over the family.

    Args:
        contrast: from `contrast`.
        family: all contrasts that are considered together, such as one metric against several
            nulls; `contrast` may be among them.
    """
    others = [one for one in family if one is not contrast]
    row = _family([contrast, *others])[0]
    return Verdict(*verdicts.verdict(row, contrast.metric, contrast.statistics.confidence))


def _family(contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """Return rows of contrasts that are corrected together, at the level of the first."""
    rows = [dict(one.tested) for one in contrasts]
    adjust(rows, "given", contrasts[0].statistics)
    return rows


def _metric(name: str | None, unit: Unit, direction: Direction | None, null: str) -> ScoresMetric:
    if unit not in TABLES:
        raise UserError(f"contrast: unit: {unit!r} is not one of {', '.join(TABLES)}")
    if direction not in (None, -1, 0, 1):
        raise UserError(f"contrast: direction: {direction!r} is not one of -1, 0, 1")
    if name is None:
        return ScoresMetric(None, unit, 1 if direction is None else direction)
    means = {n: m for n, m in METRICS.items() if (m.form, m().unit) == ("mean", unit)}
    if name not in means:
        raise UserError(
            f"contrast: metric: {name!r} is not one of the means over {unit}s: "
            f"{', '.join(means) or 'there are none'}; leave it out and give a margin"
        )
    metric = means[name]()
    if direction is None:
        known = null in VARIANTS
        direction = metric.direction_against(null) if known else metric.direction
    return ScoresMetric(metric, unit, direction)


def _arm(scores: Scores, name: str, unit: Unit, level: Literal["draw", "seed"]) -> Arm:
    """Return all arrays of one arm; a sequence gives further draws, or seeds of one draw."""
    arrays: Mapping[tuple[int, int], Any]
    if isinstance(scores, Mapping):
        arrays = scores
    else:
        given: Any = scores
        many = [*given] if any(np.ndim(one) for one in given) else [given]
        arrays = {(i, 0) if level == "draw" else (0, i): one for i, one in enumerate(many)}
    cells = []
    for (draw, seed), one in arrays.items():
        values: Floats = np.asarray(one, dtype=np.float64)
        if values.ndim != 1 or not len(values):
            raise UserError(
                f"contrast: {name}: scores are {list(values.shape)}, should be [n_units], or a "
                f"sequence of such arrays"
            )
        if n_bad := int((~np.isfinite(values)).sum()):
            raise UserError(
                f"contrast: {name}: {n_bad} of {len(values)} scores are NaN or infinite; leave "
                f"out units without a score"
            )
        cells.append(ArmCell(draw, seed, (values,)))
    return Arm(tuple(cells), units_are_shared=unit == "document")


def _check_paired(own: Arm, other: Arm, unit: Unit, names: tuple[str, str]) -> None:
    """Check that the i-th unit of each array can be the same."""
    sizes = {cell.n_units for arm in (own, other) for cell in arm.cells}
    if len(sizes) > 1:
        few, many = min(sizes), max(sizes)
        raise UserError(
            f"contrast: {unit}s are paired by their place, and some arrays have {few} scores, "
            f"others {many}"
        )
    if unit == "latent" and len(own.cells) != len(other.cells):
        counts = f"{names[0]} {len(own.cells)}, {names[1]} {len(other.cells)}"
        raise UserError(f"contrast: paired: both sides need equally many arrays: {counts}")
