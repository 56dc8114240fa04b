"""What a subject's own files say about its size, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullsae.errors import UserError
from nullsae.inputs import GgufSource, PretrainedSource, TrainSource, is_local


@dataclass(frozen=True)
class Shape:
    """Size of a subject; None where its files do not say."""

    n_layers: int | None = None
    d_model: int | None = None


def subject_shape(
    source: TrainSource | PretrainedSource | GgufSource, *, where: str, fetch: bool
) -> Shape:
    """The size of a subject.

    Args:
        source: where it comes from.
        where: its key in the config, for messages.
        fetch: whether a hub may be asked, or a GGUF header be read, if need be; without it those
            subjects have an unknown size.

    Raises:
        UserError: a path that looks local and is no model folder.
    """
    if isinstance(source, TrainSource):
        return Shape(source.n_layers, source.d_model)
    if isinstance(source, GgufSource):
        return Shape()
    if not is_local(source.path):
        return Shape()
    file = Path(source.path).expanduser() / "config.json"
    if not file.is_file():
        raise UserError(
            f"{where}.path: {source.path!r} holds no config.json; give a local model "
            f"folder or a hub id such as EleutherAI/pythia-70m"
        )
    return shape_of(json.loads(file.read_text(encoding="utf-8")))


def shape_of(described: dict[str, Any]) -> Shape:
    """The size that a Hugging Face `config.json` states."""
    described = described.get("text_config", described)
    return Shape(
        described.get("num_hidden_layers", described.get("n_layer")),
        described.get("hidden_size", described.get("n_embd")),
    )
