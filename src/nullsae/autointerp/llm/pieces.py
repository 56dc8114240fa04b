"""What an endpoint sends, read in pieces and unpacked no further than a reply can be long."""

from __future__ import annotations

import zlib
from typing import Any

# Of a reply: its frame and the content, and of each token its text, bytes and alternatives.
SPARE_BYTES, BYTES_OF_TOKEN = 8 << 20, 4096
# Values of JSON (numbers, texts, objects) take up to a hundred bytes each once they are read.
BYTES_PER_VALUE, SPARE_VALUES = 16, 200_000
# No compressed piece is unpacked to more at a time.
MOST_UNPACKED = 1 << 20
_PACKED = ("gzip", "x-gzip", "deflate")
# What zlib is told: to read a header of gzip or its own; and that there is none.
_ANY_HEADER, _NO_HEADER = 47, -15
ENCODINGS = "gzip, deflate"


class TooLongError(Exception):
    """More came than can be a reply."""


class PackingError(Exception):
    """What came is not packed as its header says."""


def most_bytes(max_completion_tokens: int) -> int:
    """The longest that a reply of so many tokens can be, unpacked."""
    return SPARE_BYTES + BYTES_OF_TOKEN * max_completion_tokens


class Pieces:
    """Puts together what comes piece by piece, unpacked, up to a number of bytes."""

    def __init__(self, encoding: str | None, most: int) -> None:
        """`encoding` is the header `Content-Encoding`."""
        self._most, self._n = most, 0
        self._found: list[bytes] = []
        self._name = (encoding or "identity").strip().lower()
        if self._name not in (*_PACKED, "identity"):
            raise PackingError("packed in a way that was not asked for")
        self._start = b""
        self._packed: Any = None

    def add(self, piece: bytes) -> None:
        """Unpack a piece and keep it.

        Raises:
            TooLongError: that makes more bytes than allowed.
            PackingError: it cannot be unpacked.
        """
        for part in self.unpacked(piece):
            self._found.append(part)

    def unpacked(self, piece: bytes) -> list[bytes]:
        """What a piece holds, unpacked and counted; raises as `add`."""
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
                raise PackingError(f"not packed as its header says ({error})") from None
            piece = self._packed.unconsumed_tail
            if self._packed.eof and (piece := self._packed.unused_data):
                # One part of gzip behind another.
                self._packed = zlib.decompressobj(_ANY_HEADER)
        return parts

    def _bits(self, start: bytes) -> int:
        """How to read what begins so: some servers send deflate without zlib's header."""
        has_header = start[0] & 15 == 8 and int.from_bytes(start[:2]) % 31 == 0
        return _ANY_HEADER if has_header or self._name != "deflate" else _NO_HEADER

    def whole(self) -> bytes:
        """All that came; a `TooLongError` if it is JSON of more values than a reply can have."""
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
