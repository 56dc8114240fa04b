"""The same entries in random places."""

from __future__ import annotations

from nullsae.config.variants import Look
from nullsae.subjects.changes import PERMUTED, WeightsVariant


class PermutedWeights(WeightsVariant):
    """The marginal distribution of each tensor is kept exactly."""

    name = "permuted_weights"
    position = 6
    group = "rearranged weights"
    text = (
        "The entries of each tensor are permuted: their exact distribution is kept, their "
        "arrangement is lost."
    )
    look = Look("#306c30", "#487860", "triangle-right", (1, 3))
    purpose = "permute_weights"
    matrix = PERMUTED
