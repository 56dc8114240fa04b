"""The same entries in random places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look, Variant
from nullsae.subjects.changes import PERMUTED, Change, change_weights


class PermutedWeights(Variant):
    """The marginal distribution of each tensor is kept exactly."""

    name = "permuted_weights"
    position = 6
    group = "rearranged weights"
    text = (
        "The entries of each tensor change places: their exact distribution stays, their "
        "arrangement is lost."
    )
    look = Look("#306c30", "#487860", "triangle-right", (1, 3))
    reads = ("norm_parameters",)
    purpose = "permute_weights"

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        return change_weights(model, settings, PERMUTED)
