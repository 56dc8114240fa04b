"""Figures that do not belong to a metric: caption and drawing in one class.

Each class is in a file of `report/drawings`, or in another package under the entry point group
`nullsae.figures`. The Snakefile asks for their names, so such a file imports Altair and pyarrow
only to draw (`core.registry.lazy`).
"""

from __future__ import annotations

from typing import Any

from nullsae.config.study import Config
from nullsae.core.registry import Registry


class FigureKind:
    """A figure that each subject has."""

    name: str
    section: str
    """Its section of the report, the key of one of `report.names.GROUPS`."""
    place: int
    """Its order in that section, among metrics and other figures."""
    title: str
    definition: str
    reading: str

    @property
    def caption(self) -> str:
        """What it shows, and how to read it."""
        return f"{self.definition} {self.reading}"

    def is_there(self, config: Config) -> bool:
        """Whether a study has this figure."""
        return True

    def draw(self, study: Any, subject: str) -> tuple[Any, str]:
        """Return chart and caption for one subject of a `report.study.Study`."""
        raise NotImplementedError


FIGURES = Registry("figures", FigureKind, "nullsae.report.drawings")
