"""Independent normal weights (Heap et al. 2025, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look, Variant
from nullsae.subjects.changes import REDRAWN, Change, change_weights


class Rerandomized(Variant):
    """Mean and variance of each tensor are kept."""

    name = "rerandomized"
    position = 4
    group = "redrawn weights"
    text = (
        "Each tensor redrawn from a normal distribution with its own mean and variance; all else "
        "is lost."
    )
    look = Look("#009e73", "#2fc9a5", "triangle-up", (2, 2))
    reads = ("norm_parameters",)
    purpose = "rerandomize"

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        return change_weights(model, settings, REDRAWN)
