"""Jobs of workflow/rules/tables.smk."""

from __future__ import annotations

from pydantic import NonNegativeInt

from nullsae.config.metrics import METRICS
from nullsae.config.section import Section
from nullsae.config.statistics import Statistics
from nullsae.config.study import Config
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.rules import Wildcards, rule


class AggregateParams(Section):
    """What `nullsae aggregate` takes."""

    seed: NonNegativeInt
    statistics: Statistics


@rule(
    *("statistics", "aggregation", "metrics/ce_score.py"),
    things=lambda _config, _wildcards: thing_files(METRICS, *METRICS),
)
def aggregate(config: Config, _wildcards: Wildcards) -> AggregateParams:
    """The whole study; which cells it has is said by the tables of each."""
    return AggregateParams(seed=config.seed, statistics=config.statistics)
