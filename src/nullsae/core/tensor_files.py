"""Headers of safetensors files, for tensors that are written in pieces or mapped from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Bytes per number for each safetensors type, in the order in which safetensors writes them.
TYPE_BYTES = {
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
    **dict.fromkeys(("F32", "U32", "I32"), 4),
    **dict.fromkeys(("BF16", "F16", "U16", "I16"), 2),
    **dict.fromkeys(("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
# safetensors rejects longer headers.
MAX_HEADER_BYTES = 100_000_000


def header(
    tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the start of a safetensors file: the length of a JSON text, then the text.

    Args:
        tensors: name, type (a key of `TYPE_BYTES`) and shape of each, in the order of their bytes.
            Readers expect alignment: larger types come first.
        metadata: texts by name.
    """
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for name, dtype, shape in tensors:
        start, stop = stop, stop + math.prod(shape) * TYPE_BYTES[dtype]
        described[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [start, stop]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Read each tensor's `dtype`, `shape` and `data_offsets` by name, and where the data begin.

    The metadata are the texts under `__metadata__`. Raises a `ValueError` if there is no header.
    """
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        found = json.loads(stream.read(size))
    if not isinstance(found, dict):
        raise ValueError("the header is not a JSON object")
    return found, 8 + size
