"""A trained subject whose embeddings point elsewhere."""

from __future__ import annotations

from nullsae.config.variants import Look
from nullsae.subjects.changes import ROWS_ROTATED, EmbeddingsVariant


class RotatedEmbeddings(EmbeddingsVariant):
    """The rows of the input embedding are rotated, and those of the output embedding if tied."""

    name = "rotated_embeddings"
    position = 10
    text = (
        "All weights as trained, but the embeddings are turned by one random rotation: their "
        "lengths and the angles between them are kept."
    )
    look = Look("#a8789c", "#cca8d8", "M-0.85,-0.85L0.85,-0.85L-0.85,0.85L0.85,0.85Z", (2, 5))
    purpose = "rotate_embeddings"
    rows = ROWS_ROTATED
