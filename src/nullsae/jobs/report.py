"""Jobs of workflow/rules/report.smk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import field_serializer

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.explainers import EXPLAINERS
from nullsae.config.metrics import METRICS
from nullsae.config.saes import ARCHITECTURES
from nullsae.config.scorers import SCORERS
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.rules import Wildcards, rule

# Keys that change no number of the page: requests to endpoints, the split of work into jobs, and
# another page. The page shows them with their defaults.
WITHOUT_NUMBERS: dict[str, Any] = {
    "llm": True,
    "autointerp": True,
    "toy": True,
    "activations": {"chunks"},
}


class ReportParams(Section):
    """What `nullsae report` takes."""

    study: Config
    """The config of the study, which the page shows."""

    @field_serializer("study")
    def numbers_alone(self, study: Config) -> dict[str, Any]:
        return study.model_dump(mode="json", exclude=WITHOUT_NUMBERS)


def _things(config: Config, _wildcards: Wildcards) -> Iterator[Path]:
    """Yield the files of things on the page, which define how they are described and drawn."""
    yield from thing_files(VARIANTS, *config.variants)
    yield from thing_files(METRICS, *METRICS)
    yield from thing_files(ARCHITECTURES, *(sae.architecture for sae in config.saes.values()))
    yield from thing_files(DICTIONARIES, *(sae.dictionary for sae in config.saes.values()))
    yield from thing_files(EXPLAINERS, *(each.name for each in config.explainers.values()))
    yield from thing_files(SCORERS, *(each.name for each in config.scorers.values()))


# The page shows SAEs and explainers in the order of the config; nothing else depends on it.
@rule("report", "aggregation/provenance.py", things=_things, ordered=False)
def report(config: Config, _wildcards: Wildcards) -> ReportParams:
    """Build params for the whole study."""
    return ReportParams(study=config)
