"""How a process keeps or returns memory that it no longer needs."""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from typing import Any

# Constants of malloc.h for `mallopt`.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def collect_rarely() -> None:
    """Make Python look for unreachable objects less often, and not at exit.

    Libraries make a million objects that stay. Traversing them while libraries load, and once more
    at exit, takes a third of a small job's time and a fifth of a dry run's.
    """
    gc.set_threshold(200_000)
    atexit.register(_skip_last_collection)


def _skip_last_collection() -> None:
    # Triton's bindings print what is not collected as leaks.
    if "triton._C.libtriton" not in sys.modules:
        gc.freeze()


def keep_freed() -> None:
    """Make this process keep the memory that it frees.

    glibc returns blocks above 32 MB, such as the logits of a batch, to the system at once, so each
    step faults them in again: a fifth of the time of a small training. Results do not change.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_MAX, 0)


def give_back() -> None:
    """Return freed memory to the system, PyArrow's too.

    The peak of a job is then that of its largest step, not the sum of what libraries keep after
    each. It takes milliseconds.
    """
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of the C library, or None if it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None)
