"""Jobs of workflow/rules/tables.smk."""

from __future__ import annotations

from typing import Any

from pydantic import field_serializer

from nullsae.config.activations import Activations
from nullsae.config.metrics import METRICS
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.report import WITHOUT_NUMBERS
from nullsae.jobs.rules import Wildcards, rule

# Keys that reach the tables only through the files of cells, or not at all.
NOT_IN_TABLES: dict[str, Any] = {
    **WITHOUT_NUMBERS,
    **dict.fromkeys(("report", "compute", "randomization", "latents"), True),
    # All optional keys.
    "activations": {*Activations.model_fields} - {"sae_train_tokens"},
}


class AggregateParams(Section):
    """What `nullsae aggregate` takes."""

    study: Config
    """Which cells there are, in which order, and what is computed from them."""

    @field_serializer("study")
    def numbers_alone(self, study: Config) -> dict[str, Any]:
        return study.model_dump(mode="json", exclude=NOT_IN_TABLES)


@rule(
    *("statistics", "aggregation", "metrics/ce_score.py", "autointerp/classification.py"),
    things=lambda _config, _wildcards: thing_files(METRICS, *METRICS),
    ordered=False,
)
def aggregate(config: Config, _wildcards: Wildcards) -> AggregateParams:
    """Build params for the whole study."""
    return AggregateParams(study=config)
