"""What a subject's own files say about its size, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullsae.config.model_files import GGUF_PACKAGES, find_gguf, is_local
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.core.errors import UserError, first_line

HUB_TIMEOUT_SECONDS = 10.0
# What families call the number of blocks and the width in their config.json.
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim")


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
        fetch: whether a hub's config.json (from the cache, else downloaded) or a GGUF file's
            header (seconds) may be read; without it those subjects have an unknown size.

    Raises:
        UserError: a path that looks local and is no model folder, a GGUF file that is not there,
            or a hub that has to be asked and does not answer.
    """
    if isinstance(source, TrainSource):
        return Shape(source.n_layers, source.d_model)
    if isinstance(source, GgufSource):
        file = find_gguf(source, where=where)
        return _gguf_shape(file, where) if fetch else Shape()
    if is_local(source.path):
        file = Path(source.path).expanduser() / "config.json"
        if not file.is_file():
            raise UserError(
                f"{where}.path: {source.path!r} holds no config.json; give a local model "
                f"folder or a hub id such as EleutherAI/pythia-70m"
            )
    elif fetch:
        file = _hub_config(source, where)
    else:
        return Shape()
    return shape_of(json.loads(file.read_text(encoding="utf-8")))


def shape_of(described: dict[str, Any]) -> Shape:
    """The size that a Hugging Face `config.json` states; multimodal models nest the text's."""
    described = described.get("text_config", described)

    def first(keys: tuple[str, ...]) -> int | None:
        return next((described[key] for key in keys if isinstance(described.get(key), int)), None)

    return Shape(first(LAYER_KEYS), first(WIDTH_KEYS))


def _hub_config(source: PretrainedSource, where: str) -> Path:
    """The subject's config.json: what the hub's cache has, else downloaded into it."""
    import huggingface_hub

    path, revision = source.path, source.revision
    try:
        cached = huggingface_hub.try_to_load_from_cache(path, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if not huggingface_hub.is_offline_mode():
            # The download would try for half a minute; this asks once.
            huggingface_hub.HfApi().repo_info(path, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        return Path(huggingface_hub.hf_hub_download(path, "config.json", revision=revision))
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        raise UserError(
            f"{where}.path: patterns of sites need the number of blocks, and the config.json of "
            f"{path!r} can be had neither from the hub nor from its cache ({first_line(error)}); "
            f"name each site instead, or give a local folder"
        ) from None


def _gguf_shape(file: Path, where: str) -> Shape:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(
            f"{where}: patterns of sites need the number of blocks, and reading it from a GGUF "
            f"file needs gguf (pip install {GGUF_PACKAGES}); or name each site"
        ) from None
    try:
        fields = GGUFReader(file).fields
        family = fields["general.architecture"].contents()
        return Shape(
            int(fields[f"{family}.block_count"].contents()),
            int(fields[f"{family}.embedding_length"].contents()),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{where}: {file} is not a GGUF file of a language model: {error}"
        ) from None
