"""The subject itself."""

from __future__ import annotations

from typing import Any

from nullsae.config.variants import Look, Variant


class Trained(Variant):
    """The reference of every contrast; the only warm strong colour."""

    name = "trained"
    position = 1
    group = "the real thing"
    text = "The subject as it was trained: what every null is compared with."
    look = Look("#c8102e", "#ff6b57", "circle", (1, 0))
    origin = "source"
    by_training = True
    fixed = True
    changes_weights = False

    @classmethod
    def lacks(cls, source: Any) -> str | None:
        return None
