"""A subject that was never trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look, Variant
from nullsae.subjects.changes import INITIALIZED, Change, change_weights


class FreshInit(Variant):
    """What the class of the model draws for itself, all of it."""

    name = "fresh_init"
    position = 3
    group = "initial weights"
    text = "New weights from the architecture's own initializer."
    look = Look("#0c3054", "#cce4e4", "triangle-down", (10, 3))

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        return change_weights(model, settings, INITIALIZED)
