"""A trained subject whose embeddings point elsewhere."""

from __future__ import annotations

from nullsae.config.variants import Look
from nullsae.subjects.changes import ROWS_ROTATED, EmbeddingsVariant


class RotatedEmbeddings(EmbeddingsVariant):
    """The rows of the input embedding are turned; the output embedding is if it is tied."""

    name = "rotated_embeddings"
    position = 10
    text = (
        "All weights as trained, but the embeddings are turned by one random rotation: lengths and "
        "angles among them stay."
    )
    look = Look("#a8789c", "#cca8d8", "M-0.85,-0.85L0.85,-0.85L-0.85,0.85L0.85,0.85Z", (2, 5))
    purpose = "rotate_embeddings"
    rows = ROWS_ROTATED
