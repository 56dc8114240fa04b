"""The subject before its training."""

from __future__ import annotations

from typing import Any

from nullsae.config.variants import Look, Variant


class Step0(Variant):
    """Read from a revision of the source, or kept by the training of a subject here."""

    name = "step0"
    position = 2
    group = "initial weights"
    text = "The subject's own weights before the first training step."
    look = Look("#0072b2", "#4f9cf5", "square", (6, 2))
    origin = "source"
    by_training = True
    fixed = True
    changes_weights = False

    @classmethod
    def revision(cls, source: Any) -> tuple[str | None, str]:
        return source.step0_revision, "step0_revision"

    @classmethod
    def lacks(cls, source: Any) -> str | None:
        if source.kind == "train" or getattr(source, "step0_revision", None) is not None:
            return None
        return (
            "step0_revision: missing, and variants names step0; give the revision of the untrained "
            "weights, or fresh_init instead of step0"
        )
