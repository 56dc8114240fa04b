"""What is compared with what, at each stage of a study.

Each stage has a real thing and its nulls: the trained subject and its variants; on the trained
subject, a learned dictionary and null ones, an explanation and another latent's or one from token
counts, a latent's own direction and another one. All become contrasts in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nullsae.aggregation.arms import ArmKeys, Arms, Pair
from nullsae.aggregation.cells import GROUP_KEYS
from nullsae.config.metrics import METRICS, OWN_DIRECTION, Metric, Stage
from nullsae.config.study import NO_EXPLAINER, Config
from nullsae.statistics.baselines import explanation_nulls
from nullsae.statistics.bootstrap import Resampler
from nullsae.statistics.contrasts import Estimate, estimate
from nullsae.statistics.matching import common_bins


@dataclass(frozen=True)
class Compared:
    """A real thing and one of its nulls, by one metric."""

    stage: Stage
    metric: Metric
    real: str
    null: str
    keys: tuple[ArmKeys, ArmKeys]
    """Of the real arm and of the null arm: subject, site, SAE, explainer, scorer, variant."""
    estimates: tuple[Estimate, Estimate]
    bins: Mapping[int, int] = field(default_factory=dict)
    differences: Estimate | None = None
    """Latent by latent, if both arms have the same latents."""
    not_comparable: str | None = None
    """A reason for no verdict, independent of the SAEs."""

    @property
    def names(self) -> tuple[str, str]:
        """Names of the real thing and of the null."""
        return self.real, self.null

    @property
    def variant(self) -> str:
        """The variant of the null arm."""
        return str(self.keys[1][-1])

    @property
    def row_keys(self) -> dict[str, Any]:
        """The keys of its row: where the real thing is, and the null's variant."""
        own = dict(zip(GROUP_KEYS, self.keys[0], strict=False))
        return {"stage": self.stage, **own, "metric": self.metric.name, "variant": self.variant}


class Stages:
    """The comparisons of all stages, from the arms of a study."""

    def __init__(self, config: Config, arms: Arms, resampler: Resampler) -> None:
        """Prepare; call `model` first for every group, because `others` needs its estimates."""
        self._config = config
        self._arms = arms
        self._resampler = resampler
        self._trained: dict[tuple[ArmKeys, str], Estimate] = {}

    def model(
        self, metric: Metric, where: ArmKeys, estimates: Mapping[str, Estimate]
    ) -> Iterator[Compared]:
        """Compare the trained subject with its variants, whose estimates are given by name."""
        self._trained[where, metric.name] = estimates["trained"]
        bins = _bins(metric, *estimates.values())
        own = (*where, "trained")
        for variant, found in estimates.items():
            if variant != "trained":
                keys, both = (own, (*where, variant)), (estimates["trained"], found)
                yield Compared("model", metric, "trained", variant, keys, both, bins)

    def others(self) -> Iterator[Compared]:
        """Compare within the trained subject: dictionaries, explanations, effects."""
        for where, metric in self._known():
            yield from self._dictionaries(metric, where)
        for where, metric in self._known():
            if metric.table == "scores":
                yield from self._explanations(metric, where)
        for where, metric in self._known():
            yield from self._effects(metric, where)

    def _known(self) -> Iterator[tuple[ArmKeys, Metric]]:
        for where, name in self._trained:
            yield where, METRICS[name]()

    def _dictionaries(self, metric: Metric, where: ArmKeys) -> Iterator[Compared]:
        """Compare a learned dictionary with each null one: by document, or unpaired by latent.

        A dictionary made from an SAE is a null of that SAE only.
        """
        subject, site, sae, *judge = where
        if sae is None or not self._config.saes[sae].is_real:
            return
        if self._config.saes[sae].output_site is not None:
            return  # it reconstructs another site than the dictionaries do
        real = self._trained[where, metric.name]
        for null, recipe in self._config.saes.items():
            other = (subject, site, null, *judge)
            found = self._trained.get((other, metric.name))
            is_null = recipe.origin.is_null and recipe.origin.source in (None, sae)
            if is_null and found is not None:
                keys = (*where, "trained"), (*other, "trained")
                bins = _bins(metric, real, found)
                yield Compared("dictionary", metric, sae, null, keys, (real, found), bins)

    def _explanations(self, metric: Metric, where: ArmKeys) -> Iterator[Compared]:
        """Compare an explanation with another latent's, and with one from token counts."""
        *place, explainer, scorer = where
        if explainer is None or scorer is None or explainer == NO_EXPLAINER:
            return
        for null in explanation_nulls(self._config, explainer):
            keys = (*where, "trained"), (*place, null, scorer, "trained")
            judges = [self._config.asked(name, scorer) for name in (explainer, null)]
            problem = None
            if judges[0] != judges[1]:
                named = ["a formula" if one is None else one.model for one in judges]
                problem = (
                    f"{explainer} is judged by {named[0]}, {null} by {named[1]}: the score of "
                    f"{null} is a ceiling, not a null"
                )
            pair = self._arms.by_latent(metric, *keys)
            yield self._paired("explanation", metric, (explainer, null), keys, pair, problem)

    def _effects(self, metric: Metric, where: ArmKeys) -> Iterator[Compared]:
        """Compare a latent's own direction with the placebos that the metric names."""
        keys = (*where, "trained")
        for null in metric.placebos:
            pair = self._arms.by_placebo(metric, keys, null)
            yield self._paired("effect", metric, (OWN_DIRECTION, null), (keys, keys), pair)

    def _paired(
        self,
        stage: Stage,
        metric: Metric,
        names: tuple[str, str],
        keys: tuple[ArmKeys, ArmKeys],
        pair: Pair,
        problem: str | None = None,
    ) -> Compared:
        own, other, between = (
            estimate(arm, metric, self._config.statistics, self._resampler) for arm in pair
        )
        return Compared(
            stage,
            metric,
            *names,
            keys,
            (own, other),
            differences=between,
            not_comparable=problem,
        )


def _bins(metric: Metric, *estimates: Estimate) -> dict[int, int]:
    """Return the firing-rate bins in which the arms that have a value can be compared."""
    if metric.unit != "latent" or metric.form != "mean":
        return {}
    return common_bins([one.arm for one in estimates if one.value is not None])
