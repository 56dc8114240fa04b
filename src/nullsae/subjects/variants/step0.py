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
    def weights_of(cls, source: Any) -> tuple[str, str | None, str, str]:
        return source.weights_of(step0=True)  # type: ignore[no-any-return]

    @classmethod
    def lacks(cls, source: Any) -> str | None:
        keys = ("step0_revision", "step0_path")
        if source.kind == "train" or any(getattr(source, key, None) for key in keys):
            return None
        return (
            "step0_revision: missing, but variants names step0; give the revision of the untrained "
            "weights, or step0_path, or use fresh_init instead of step0"
        )
