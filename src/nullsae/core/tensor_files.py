"""Headers of safetensors files, for tensors that are written in pieces or mapped from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Bytes of one number, by the names of the types in safetensors.
TYPE_BYTES = {"I64": 8, "I32": 4, "U32": 4, "F32": 4, "BF16": 2, "F16": 2}


def header(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> bytes:
    """What a safetensors file begins with: the length of a JSON text, then this text.

    Args:
        tensors: name, type (a key of `TYPE_BYTES`) and shape of each, in the order of their bytes.
            Readers want these aligned: types of more bytes go first.
    """
    described, stop = {}, 0
    for name, dtype, shape in tensors:
        start, stop = stop, stop + math.prod(shape) * TYPE_BYTES[dtype]
        described[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [start, stop]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Each tensor's `dtype`, `shape` and `data_offsets` by its name, and where the data begin."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(size)), 8 + size
