"""The same singular values, random singular vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look, Variant
from nullsae.subjects.changes import MATCHED, PERMUTED, Change, change_weights


class SpectrumMatched(Variant):
    """Vectors are permuted.

    That keeps the spectrum of a vector in both readings: its norm, as a column, and the entries of
    diag(g), as a gain.
    """

    name = "spectrum_matched"
    position = 7
    group = "rearranged weights"
    text = "Each matrix keeps its singular values; its singular vectors are random."
    look = Look("#909054", "#84c078", "triangle-left", (12, 3, 1, 3))
    reads = ("norm_parameters",)
    purpose = "match_spectrum"

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        return change_weights(model, settings, MATCHED, vector=PERMUTED)
