"""Memory that was freed, kept or given back where the C library is glibc."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Of malloc.h, for `mallopt`.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed() -> None:
    """Let this process keep what it frees.

    glibc gives blocks above 32 MB, such as the logits of a batch, back to the system at once. Each
    step then faults them in anew: a fifth of the time of a small training. No bit changes.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_MAX, 0)


def give_back() -> None:
    """Give back what was freed and is kept for requests of the same size, by PyArrow too.

    What a job does next then finds room: its peak is that of one thing after the other, not of what
    libraries happen to keep of each. It takes milliseconds.
    """
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of the C library; None where there is none of this name."""
    return getattr(ctypes.CDLL(None), name, None)
