"""Independent normal weights between trained embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look, Variant
from nullsae.subjects.changes import REDRAWN, Change, change_weights, embedding_parameters


class RerandomizedKeepEmbeddings(Variant):
    """It shares its random numbers with `rerandomized`: they differ in the embeddings only."""

    name = "rerandomized_keep_embeddings"
    position = 5
    group = "redrawn weights"
    text = (
        "Each tensor redrawn as in rerandomized, but for the input and output embeddings, which "
        "stay as trained."
    )
    look = Look("#b07a00", "#e8c14a", "diamond", (8, 2, 2, 2))
    reads = ("norm_parameters",)
    purpose = "rerandomize"

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        names = {name for name, _ in model.named_parameters()} - embedding_parameters(model)
        return change_weights(model, settings, REDRAWN, names=names)
