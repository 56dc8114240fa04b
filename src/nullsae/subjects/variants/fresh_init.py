"""A subject that was never trained."""

from __future__ import annotations

from nullsae.config.variants import Look
from nullsae.subjects.changes import INITIALIZED, WeightsVariant


class FreshInit(WeightsVariant):
    """All weights as the model's class initializes them."""

    name = "fresh_init"
    position = 3
    group = "initial weights"
    text = "New weights from the architecture's own initializer."
    look = Look("#0c3054", "#cce4e4", "triangle-down", (10, 3))
    reads = ()
    matrix = INITIALIZED
