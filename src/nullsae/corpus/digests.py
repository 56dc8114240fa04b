"""A set of digests that takes 16 bytes for each."""

from __future__ import annotations

import hashlib

import numpy as np

# Digests in a Python set, about 100 bytes each, before they are merged into the array.
MAX_RECENT = 2**17
# Digests that are hashed together.
PIECE = 2**16


class DigestSet:
    """16-byte digests: 16 bytes of memory for each, and twice that while some are merged."""

    def __init__(self, max_recent: int = MAX_RECENT) -> None:
        self._max_recent = max_recent
        self._recent: set[bytes] = set()
        self._sorted = np.zeros(0, dtype="S16")

    def __len__(self) -> int:
        return len(self._recent) + len(self._sorted)

    def add(self, digest: bytes) -> bool:
        """Add 16 bytes; return whether they are new."""
        if digest in self._recent or self._has(digest):
            return False
        self._recent.add(digest)
        if len(self._recent) >= self._max_recent:
            self._merge()
        return True

    def add_all(self, digests: bytes) -> None:
        """Add concatenated 16-byte digests, all of them new."""
        self._merge()
        more = np.sort(np.frombuffer(digests, dtype="S16"))
        self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, more), more)

    def _has(self, digest: bytes) -> bool:
        # NumPy drops trailing null bytes of both sides, so they still compare correctly.
        wanted = np.array(digest, dtype="S16")
        at = int(np.searchsorted(self._sorted, wanted))
        return at < len(self._sorted) and bool(self._sorted[at] == wanted)

    def _merge(self) -> None:
        new = np.array(sorted(self._recent), dtype="S16")
        self._recent.clear()
        self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, new), new)

    def digest(self) -> str:
        """Return one digest of the set, hex: BLAKE2b-128 of its digests in ascending order."""
        self._merge()
        found = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self._sorted), PIECE):
            found.update(self._sorted[start : start + PIECE].tobytes())
        return found.hexdigest()
