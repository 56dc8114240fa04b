"""What a process does with the memory that it freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FREED = """
import resource
import numpy as np
from nullsae.core.memory import keep_freed

def faults():
    np.ones(2**24, dtype=np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

given_back = [faults() for _ in range(4)]
keep_freed()
faults()
kept = [faults() for _ in range(4)]
print(given_back[-1] - given_back[0], kept[-1] - kept[0])
"""


# Pieces freed below one that is still in use, so that none is given back by itself.
HELD = """
from pathlib import Path
import numpy as np
from nullsae.core.memory import give_back

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4

pieces = [np.ones(2**13) for _ in range(1000)]
last, full = np.ones(2**13), held()
del pieces
kept = held()
give_back()
print(full, kept, held())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@glibc
def test_a_freed_block_is_not_faulted_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept * 100 < given_back


@glibc
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    full, kept, left = map(int, done.stdout.split())
    assert full - kept < 2**13 < full - left


@pytest.mark.parametrize("triton", [False, True])
def test_objects_are_not_collected_at_exit_unless_triton_would_call_them_leaks(
    triton: bool,
) -> None:
    code = """
import atexit, gc, sys
from nullsae.core.memory import collect_rarely
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # runs after those registered later
collect_rarely()
if sys.argv[1] == "True":
    sys.modules["triton._C.libtriton"] = sys
"""
    call = [sys.executable, "-c", code, str(triton)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(not triton)
