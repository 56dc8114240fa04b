"""A trained subject that reads other tokens than the text has."""

from __future__ import annotations

from nullsae.config.variants import Look
from nullsae.subjects.changes import ROWS_PERMUTED, EmbeddingsVariant


class PermutedEmbeddings(EmbeddingsVariant):
    """The rows of the input embedding are permuted, and those of the output embedding if tied."""

    name = "permuted_embeddings"
    position = 9
    text = "All weights as trained, but the embeddings are permuted among tokens."
    look = Look(
        "#6c3c84",
        "#9060a8",
        "M-0.9,-0.55L-0.55,-0.9L0,-0.35L0.55,-0.9L0.9,-0.55L0.35,0"
        "L0.9,0.55L0.55,0.9L0,0.35L-0.55,0.9L-0.9,0.55L-0.35,0Z",
        (6, 2, 1, 2, 1, 2),
    )
    purpose = "permute_embeddings"
    rows = ROWS_PERMUTED
