"""Jobs of workflow/rules/tables.smk."""

from __future__ import annotations

from typing import Any

from pydantic import field_serializer

from nullsae.config.metrics import METRICS
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.report import WITHOUT_NUMBERS
from nullsae.jobs.rules import Wildcards, rule


class AggregateParams(Section):
    """What `nullsae aggregate` takes."""

    study: Config
    """Which cells there are, in which order, and what is computed of them."""

    @field_serializer("study")
    def numbers_alone(self, study: Config) -> dict[str, Any]:
        but = {**WITHOUT_NUMBERS, "report": True, "compute": True}
        return study.model_dump(mode="json", exclude=but)


@rule(
    *("statistics", "aggregation", "metrics/ce_score.py"),
    things=lambda _config, _wildcards: thing_files(METRICS, *METRICS),
    ordered=False,
)
def aggregate(config: Config, _wildcards: Wildcards) -> AggregateParams:
    """The whole study."""
    return AggregateParams(study=config)
