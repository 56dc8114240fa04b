"""Independent normal weights between trained embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look
from nullsae.subjects.changes import Change, embedding_parameters
from nullsae.subjects.variants.rerandomized import Rerandomized


class RerandomizedKeepEmbeddings(Rerandomized):
    """It shares its random numbers with `rerandomized`; only the embeddings differ."""

    name = "rerandomized_keep_embeddings"
    position = 5
    text = (
        "Each tensor is redrawn as in rerandomized, except for the input and output embeddings, "
        "which stay as trained."
    )
    look = Look("#b07a00", "#e8c14a", "diamond", (8, 2, 2, 2))

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        kept = embedding_parameters(model)
        changes = super().changes(model, settings)
        return {name: change for name, change in changes.items() if name not in kept}
