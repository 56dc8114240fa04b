"""Writes tensors to files and reads them piece by piece, without a second copy in memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from nullsae.core.tensor_files import TYPE_BYTES

# How much is in host memory in addition to a tensor.
PIECE_BYTES = 2**24
TORCH_TYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Names of dtypes in safetensors.
TYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}
_RANKS = {name: rank for rank, name in enumerate(TYPE_BYTES)}


Sink = Callable[[memoryview], object]


def in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in the order in which safetensors writes them."""
    items = tensors.items()
    return dict(sorted(items, key=lambda item: (_RANKS[TYPES[item[1].dtype]], item[0])))


def described(tensors: Mapping[str, Tensor]) -> list[tuple[str, str, list[int]]]:
    """Return the name, type and shape of each tensor, as `header` takes them."""
    return [(name, TYPES[t.dtype], list(t.shape)) for name, t in tensors.items()]


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield views that make up a tensor, in order, each of at most `PIECE_BYTES`."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), PIECE_BYTES // tensor.itemsize)
    elif tensor.nbytes <= PIECE_BYTES:
        yield tensor
    elif (row_bytes := tensor[0].nbytes) > PIECE_BYTES:
        for row in tensor:
            yield from pieces(row)
    else:
        yield from torch.split(tensor, PIECE_BYTES // row_bytes)


def put_tensor(tensor: Tensor, put: Sink) -> None:
    """Pass a tensor's bytes, as safetensors stores them, to `put`, piece by piece."""
    room = _room(tensor)
    for piece in pieces(tensor):
        if piece.is_cpu and piece.is_contiguous() and not (piece.is_conj() or piece.is_neg()):
            # A single number is contiguous with any stride, but cannot always be viewed as bytes.
            found = piece.as_strided((piece.numel(),), (1,)).view(torch.uint8)
        else:
            found = room[: piece.nbytes]
            found.view(piece.dtype).view(piece.shape).copy_(piece)
        put(found.numpy().data)


def fill_tensor(tensor: Tensor, read: Sink) -> None:
    """Fill a tensor in place; `read` writes bytes into the buffer that it is given."""
    room = _room(tensor)
    for piece in pieces(tensor):
        found = room[: piece.nbytes]
        read(found.numpy().data)
        piece.copy_(found.view(piece.dtype).view(piece.shape))


def _room(tensor: Tensor) -> Tensor:
    """Return memory for one piece of a tensor, which goes back to the system once unused.

    With malloc, memory would grow with each piece: freed pieces are kept, and the next ones are
    placed next to them.
    """
    n_bytes = max(min(PIECE_BYTES, tensor.nbytes), 1)
    return torch.frombuffer(mmap.mmap(-1, n_bytes), dtype=torch.uint8)
