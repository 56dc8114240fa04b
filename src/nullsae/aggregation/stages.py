"""What is compared with what, at each stage of a study.

Each stage has a real thing and nulls of it: the trained subject and its variants; on the trained
subject a learned dictionary and null ones, an explanation and another latent's or that of token
counts, a latent's own direction and another one. All of them become contrasts in one way.
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
    """A real thing and a null of it, by one metric."""

    stage: Stage
    metric: Metric
    real: str
    null: str
    keys: tuple[ArmKeys, ArmKeys]
    """Of the real arm and of the null's: subject, site, SAE, explainer, scorer, variant."""
    estimates: tuple[Estimate, Estimate]
    bins: Mapping[int, int] = field(default_factory=dict)
    differences: Estimate | None = None
    """Latent by latent, where both arms are about the same latents."""
    not_comparable: str | None = None
    """Why there is no verdict, whatever the SAEs are."""

    @property
    def names(self) -> tuple[str, str]:
        """Of the real thing and of the null."""
        return self.real, self.null

    @property
    def variant(self) -> str:
        """Whose arm the null's is."""
        return str(self.keys[1][-1])

    @property
    def row_keys(self) -> dict[str, Any]:
        """The keys of its row: where the real thing is, and the variant that the null is of."""
        own = dict(zip(GROUP_KEYS, self.keys[0], strict=False))
        return {"stage": self.stage, **own, "metric": self.metric.name, "variant": self.variant}


class Stages:
    """The comparisons of all stages, from the arms of a study."""

    def __init__(self, config: Config, arms: Arms, resampler: Resampler) -> None:
        """`model` is asked first, group by group: it keeps what `dictionary` compares."""
        self._config = config
        self._arms = arms
        self._resampler = resampler
        self._trained: dict[tuple[ArmKeys, str], Estimate] = {}

    def model(
        self, metric: Metric, where: ArmKeys, estimates: Mapping[str, Estimate]
    ) -> Iterator[Compared]:
        """The trained subject against its variants, whose estimates are given by name."""
        self._trained[where, metric.name] = estimates["trained"]
        bins = _bins(metric, *estimates.values())
        own = (*where, "trained")
        for variant, found in estimates.items():
            if variant != "trained":
                keys, both = (own, (*where, variant)), (estimates["trained"], found)
                yield Compared("model", metric, "trained", variant, keys, both, bins)

    def others(self) -> Iterator[Compared]:
        """Those within the trained subject: of dictionaries, of explanations, of effects."""
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
        """A learned dictionary against each null one: by document, or by other latents.

        What is made from an SAE is a null of that one alone.
        """
        subject, site, sae, *judge = where
        if sae is None or not self._config.saes[sae].is_real:
            return
        if self._config.saes[sae].output_site is not None:
            return  # what it explains is another site than that of the dictionaries
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
        """An explanation against another latent's, and against that of token counts."""
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
                    f"{explainer} is judged by {named[0]}, {null} by {named[1]}: what {null} "
                    f"scores stands beside as a ceiling, and is no null"
                )
            pair = self._arms.by_latent(metric, *keys)
            yield self._paired("explanation", metric, (explainer, null), keys, pair, problem)

    def _effects(self, metric: Metric, where: ArmKeys) -> Iterator[Compared]:
        """A latent's own direction against those that its metric names as placebos."""
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
    """Firing rates at which the arms can be compared that have a value."""
    if metric.unit != "latent" or metric.form != "mean":
        return {}
    return common_bins([one.arm for one in estimates if one.value is not None])
