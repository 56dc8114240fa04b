"""Independent normal weights (Heap et al. 2025, section 3)."""

from __future__ import annotations

from nullsae.config.variants import Look
from nullsae.subjects.changes import REDRAWN, WeightsVariant


class Rerandomized(WeightsVariant):
    """Mean and variance of each tensor are kept."""

    name = "rerandomized"
    position = 4
    group = "redrawn weights"
    text = (
        "Each tensor is redrawn from a normal distribution with its own mean and variance; "
        "everything else is lost."
    )
    look = Look("#009e73", "#2fc9a5", "triangle-up", (2, 2))
    purpose = "rerandomize"
    matrix = REDRAWN
