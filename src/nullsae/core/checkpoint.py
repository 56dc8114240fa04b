"""The state of a training in a file: whole, checked, without pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nullsae.core.files import atomic_path

# What reading a damaged file may raise.
DAMAGED = (SafetensorError, OSError, ValueError, KeyError, TypeError)


def save_state(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors of any shape and dtype, and texts, atomically."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, "checksum": _checksum(metadata, tensors)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_state` wrote: the tensors in their shapes and dtypes, on the CPU, and the texts.

    Raises:
        One of `DAMAGED`: the file is not what was written.
    """
    with safe_open(path, framework="pt") as stream:
        metadata: dict[str, str] = stream.metadata()
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    if metadata.pop("checksum") != _checksum(metadata, tensors):
        raise ValueError("its content differs from its checksum")
    return tensors, metadata


def _checksum(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """XXH3-128 of what a file holds, as hex."""
    digest = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
