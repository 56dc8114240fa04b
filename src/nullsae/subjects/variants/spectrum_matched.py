"""The same singular values, random singular vectors."""

from __future__ import annotations

from nullsae.config.variants import Look
from nullsae.subjects.changes import MATCHED, PERMUTED, WeightsVariant


class SpectrumMatched(WeightsVariant):
    """Vectors are permuted.

    This keeps the spectrum of a vector in both readings: its norm, as a column, and the entries of
    diag(g), as a gain.
    """

    name = "spectrum_matched"
    position = 7
    group = "rearranged weights"
    text = "Each matrix keeps its singular values; its singular vectors are random."
    look = Look("#909054", "#84c078", "triangle-left", (12, 3, 1, 3))
    purpose = "match_spectrum"
    matrix, vector = MATCHED, PERMUTED
