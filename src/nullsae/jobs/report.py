"""Jobs of workflow/rules/report.smk."""

from __future__ import annotations

from typing import Any

from pydantic import field_serializer

from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.jobs.rules import Wildcards, rule

# Keys that change no number of the page: how endpoints are asked, how work is shared out, and what
# another page shows. It shows them with their defaults.
WITHOUT_NUMBERS: dict[str, Any] = {
    "llm": True,
    "autointerp": True,
    "toy": True,
    "activations": {"chunks"},
}


class ReportParams(Section):
    """What `nullsae report` takes."""

    study: Config
    """The config of the study: the page shows it."""

    @field_serializer("study")
    def numbers_alone(self, study: Config) -> dict[str, Any]:
        return study.model_dump(mode="json", exclude=WITHOUT_NUMBERS)


# The page shows SAEs and explainers in the order of the config; nothing else depends on it.
@rule("report", ordered=False)
def report(config: Config, _wildcards: Wildcards) -> ReportParams:
    """The whole study."""
    return ReportParams(study=config)
