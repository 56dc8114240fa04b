"""The subject trained again from another seed: the positive control."""

from __future__ import annotations

from typing import Any

from nullsae.config.randomization import Settings
from nullsae.config.subjects import NUMBER
from nullsae.config.variants import Look, Variant
from nullsae.core.errors import UserError


class Retrained(Variant):
    """Trained here like `trained`, with its own seed for each draw, or read from the source."""

    name = "retrained"
    # The same position as `step0`, so names decide: a change of `step0.py` would change hashes.
    position = 2
    group = "positive control"
    role = "positive control"
    text = (
        "The same architecture trained by the same recipe on the same text from another seed; not "
        "a null. A metric of what training created gives it the same value as trained."
    )
    look = Look("#885ef9", "#7363f5", "M-1,-1L1,-1L0,0L1,1L-1,1L0,0Z", (16, 2))
    origin = "source"
    changes_weights = False

    @classmethod
    def draws(cls, source: Any, n: int) -> range:
        if source.kind == "train":
            return range(n)
        found = source.retrained.n_models
        return range(n if found is None else found)

    @classmethod
    def source_of(cls, source: Any, draw: int) -> Any:
        if getattr(source, "retrained", None) is None:
            return source
        return source.model_copy(update={"retrained": source.retrained.numbered(draw)})

    @classmethod
    def weights_of(cls, source: Any) -> tuple[str, str | None, str, str]:
        given = source.retrained
        return given.path, given.revision, "retrained.path", "retrained.revision"

    @classmethod
    def lacks(cls, source: Any) -> str | None:
        if source.kind == "train" or getattr(source, "retrained", None) is not None:
            return None
        if source.kind != "pretrained":
            return super().lacks(source)
        return (
            f"retrained: missing, but variants names retrained; give {{path, revision}} of the "
            f"subject trained from another seed (EleutherAI/pythia-14m-seed{NUMBER} of PolyPythias "
            f"for EleutherAI/pythia-14m), or drop retrained from variants"
        )

    @classmethod
    def resolve(cls, model: Any, settings: Settings, subject: str) -> Settings:
        raise UserError(
            f"--params: keys.variant: {cls.name!r} is trained, not randomized; use nullsae "
            f"retrain_subject"
        )
