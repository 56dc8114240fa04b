"""Checkpoint files of a training: written atomically, with a checksum, without pickle.

Tensors are written and read in pieces, so neither needs a second copy in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import xxhash
from torch import Tensor

from nullsae.core.files import atomic_path
from nullsae.core.tensor_files import TYPE_BYTES, header, read_header
from nullsae.core.tensor_pieces import (
    TORCH_TYPES,
    described,
    fill_tensor,
    in_order,
    put_tensor,
)

# The exceptions that reading a damaged file may raise.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors of any shape, dtype and device to a safetensors file, atomically."""
    tensors = in_order(tensors)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(header(described(tensors)))
        for tensor in tensors.values():
            put_tensor(tensor, stream.write)


def save_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors of any shape, dtype and device, and texts, atomically.

    The result is a safetensors file whose metadata include a `checksum` (XXH3-128, hex).
    """
    tensors = in_order(tensors)
    digest = _Digest(metadata)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:

        def put(data: memoryview) -> None:
            digest.add(data)
            stream.write(data)

        # A placeholder as long as the true header; the checksum is only known at the end.
        stream.write(header(described(tensors), {**metadata, "checksum": digest.hex()}))
        for name, tensor in tensors.items():
            digest.add(name.encode())
            put_tensor(tensor, put)
        stream.seek(0)
        stream.write(header(described(tensors), {**metadata, "checksum": digest.hex()}))


@dataclass(frozen=True)
class SavedState:
    """A file written by `save_state` whose tensors have not been read yet."""

    path: Path
    metadata: dict[str, str]
    """Texts by name."""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    """Dtype and shape of each tensor, in file order."""
    start: int
    """Offset of their first byte."""
    checksum: str

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header of a file.

        Raises:
            One of `DAMAGED`: the file differs from what was written.
        """
        found, start = read_header(path)
        metadata = found.pop("__metadata__")
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        stop = 0
        for name, of in found.items():
            at, stop = stop, stop + math.prod(of["shape"]) * TYPE_BYTES[of["dtype"]]
            if of["data_offsets"] != [at, stop]:
                raise ValueError(f"{name} is not where it should be")
            tensors[name] = TORCH_TYPES[of["dtype"]], tuple(of["shape"])
        if (size := path.stat().st_size) != start + stop:
            raise ValueError(f"{size} bytes instead of {start + stop}")
        return cls(path, metadata, tensors, start, metadata.pop("checksum"))

    def room(self, name: str, device: torch.device) -> Tensor:
        """Make an empty tensor with the dtype and shape of a stored one, for `read_into`."""
        dtype, shape = self.tensors[name]
        return torch.empty(shape, dtype=dtype, device=device)

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors in place with the stored ones of the same names.

        Raises:
            One of `DAMAGED`: the stored names, dtypes or shapes differ (nothing is filled), or the
                file differs from what was written (discard the tensors).
        """
        wanted = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        if wanted != self.tensors:
            differing = sorted(dict(wanted.items() ^ self.tensors.items()))
            raise ValueError(f"it holds other tensors ({', '.join(differing)})")
        digest = _Digest(self.metadata)
        with open(self.path, "rb") as stream:
            stream.seek(self.start)

            def read(room: memoryview) -> None:
                if stream.readinto(room) != len(room):
                    raise ValueError("it ends too early")
                digest.add(room)

            for name in self.tensors:
                digest.add(name.encode())
                fill_tensor(tensors[name], read)
        if digest.hex() != self.checksum:
            raise ValueError("its content differs from its checksum")


class _Digest:
    """XXH3-128 of a file's content: its texts, then the name and bytes of each tensor."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._found = xxhash.xxh3_128(json.dumps(dict(metadata), sort_keys=True).encode())

    def add(self, data: Any) -> None:
        self._found.update(data)

    def hex(self) -> str:
        return self._found.hexdigest()
