"""Reads responses in pieces, and decompresses no more than a reply can contain."""

from __future__ import annotations

import zlib
from typing import Any

# For the frame and content of a reply; and for each token's text, bytes and alternatives.
SPARE_BYTES, BYTES_OF_TOKEN = 8 << 20, 4096
# JSON values (numbers, texts, objects) take up to a hundred bytes of memory each.
BYTES_PER_VALUE, SPARE_VALUES = 16, 200_000
# The most that is decompressed at a time.
MOST_UNPACKED = 1 << 20
_PACKED = ("gzip", "x-gzip", "deflate")
# zlib's modes: to read gzip's or zlib's header, or none.
_ANY_HEADER, _NO_HEADER = 47, -15
ENCODINGS = "gzip, deflate"


class TooLongError(Exception):
    """More was received than a reply can contain."""


class PackingError(Exception):
    """The response is not compressed as its header says."""


def most_bytes(max_completion_tokens: int) -> int:
    """Return the largest decompressed size of a reply of this many tokens."""
    return SPARE_BYTES + BYTES_OF_TOKEN * max_completion_tokens


class Pieces:
    """Joins pieces as they come, decompressed, up to a number of bytes."""

    def __init__(self, encoding: str | None, most: int) -> None:
        """`encoding` is the header `Content-Encoding`."""
        self._most, self._n = most, 0
        self._found: list[bytes] = []
        self._name = (encoding or "identity").strip().lower()
        if self._name not in (*_PACKED, "identity"):
            raise PackingError("compressed in a way that was not requested")
        self._start = b""
        self._packed: Any = None

    def add(self, piece: bytes) -> None:
        """Decompress a piece and keep it.

        Raises:
            TooLongError: the total exceeds the limit.
            PackingError: it cannot be decompressed.
        """
        for part in self.unpacked(piece):
            self._found.append(part)

    def unpacked(self, piece: bytes) -> list[bytes]:
        """Return a piece decompressed and counted; raises as `add`."""
        if self._name == "identity":
            return [self._counted(piece)]
        parts = []
        if self._packed is None:
            piece = self._start = self._start + piece
            if len(piece) < 2:
                return []
            self._packed = zlib.decompressobj(self._bits(piece))
        while piece:
            try:
                parts.append(self._counted(self._packed.decompress(piece, MOST_UNPACKED)))
            except zlib.error as error:
                raise PackingError(f"not compressed as its header says ({error})") from None
            piece = self._packed.unconsumed_tail
            if self._packed.eof and (piece := self._packed.unused_data):
                # Another gzip member follows.
                self._packed = zlib.decompressobj(_ANY_HEADER)
        return parts

    def _bits(self, start: bytes) -> int:
        """Return zlib's mode by the first bytes: some servers send deflate without a header."""
        has_header = start[0] & 15 == 8 and int.from_bytes(start[:2]) % 31 == 0
        return _ANY_HEADER if has_header or self._name != "deflate" else _NO_HEADER

    def whole(self) -> bytes:
        """Return everything; a `TooLongError` if it is JSON of more values than a reply has."""
        content = b"".join(self._found)
        n_values = sum(content.count(sign) for sign in (b",", b"[", b"{"))
        if n_values > SPARE_VALUES + self._most // BYTES_PER_VALUE:
            raise TooLongError(f"more than {n_values} values")
        return content

    def _counted(self, part: bytes) -> bytes:
        self._n += len(part)
        if self._n > self._most:
            raise TooLongError(f"more than {self._most >> 20} MiB")
        return part
