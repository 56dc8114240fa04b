"""A trained subject whose embeddings point elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look, Variant
from nullsae.subjects.changes import ROWS_ROTATED, Change, change_embeddings


class RotatedEmbeddings(Variant):
    """The rows of the input embedding are turned; the output embedding is if it is tied."""

    name = "rotated_embeddings"
    position = 10
    group = "embeddings"
    text = (
        "All weights as trained, but the embeddings are turned by one random rotation: lengths and "
        "angles among them stay."
    )
    look = Look("#a8789c", "#cca8d8", "M-0.85,-0.85L0.85,-0.85L-0.85,0.85L0.85,0.85Z", (2, 5))
    purpose = "rotate_embeddings"

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        return change_embeddings(model, ROWS_ROTATED)
