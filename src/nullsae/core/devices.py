"""The device of a job: a GPU that no other job on the machine uses, or why there is none."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from nullsae.core.errors import UserError, first_line
from nullsae.core.locking import Alone

log = logging.getLogger(__name__)

# Variables by which a scheduler, or a user, says that a job has a GPU.
GRANTS = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
NONE_GRANTED = ("", "-1", "NoDevFiles")
# A scheduler's jobs may each call their own GPU 0.
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
# Kinds of devices that have no float64: what needs it is computed on the CPU.
WITHOUT_FLOAT64 = {"mps"}
DRIVER = Path("/proc/driver/nvidia/version")
LOOK_SECONDS = 1.0

# Locks end with the process.
_held = Alone()


@cache
def device_of(name: str) -> torch.device:
    """Choose the device that `compute.device` means here, for the rest of the process.

    `cuda`, and `auto` if there is CUDA, take the first GPU that no other job holds, or wait for
    one; `cuda:N` waits for that one. It becomes the default of this thread. `mps` is the GPU of a
    Mac, which only one job holds at a time.

    Raises:
        UserError: there is no CUDA or MPS, or a granted GPU cannot be used; names the versions of
            driver and PyTorch.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                "config: compute.device: 'mps', but this is no Mac with a GPU; use auto"
            )
        _free([_lock_named("mps")])
        return torch.device("mps")
    if not torch.cuda.is_available():
        grant = next((v for v in GRANTS if os.environ.get(v, "") not in NONE_GRANTED), None)
        if grant is not None:
            raise UserError(_unusable(f"this job was given a GPU ({grant}={os.environ[grant]})"))
        if name == "auto":
            return torch.device("cpu")
        raise UserError(
            f"config: compute.device: {name!r}, but there is no CUDA device here; use auto"
        )
    count = torch.cuda.device_count()
    wanted = [int(name.removeprefix("cuda:"))] if ":" in name else list(range(count))
    if wanted[-1] >= count:
        raise UserError(f"config: compute.device: {name!r}, but there are {count} GPUs here")
    index = wanted[_free([_lock(each) for each in wanted])]
    try:
        torch.cuda.set_device(index)
        torch.zeros(1, device=f"cuda:{index}")
    except RuntimeError as error:
        raise UserError(_unusable(f"GPU {index}: {first_line(error)}")) from None
    return torch.device("cuda", index)


@cache
def hold_others(own: torch.device, n_gpus: int | None) -> tuple[int, ...]:
    """Hold further GPUs; return the indices of all that this process holds, ascending.

    Args:
        own: its own, as `device_of` gave it.
        n_gpus: how many it needs; None for all that no other job holds.

    Raises:
        UserError: fewer are free.
    """
    count, first = torch.cuda.device_count(), own.index or 0
    held = [first]
    for index in range(count):
        if len(held) != n_gpus and index != first and _held.take(_lock(index)):
            held.append(index)
    if len(held) < (n_gpus or 1):
        raise UserError(
            f"config: subjects.*.source.gpus: {n_gpus}, but of the {count} GPUs here {len(held)} "
            f"are free; give Snakemake their number: --resources gpu={count}"
        )
    return tuple(sorted(held))


def same_device() -> Callable[[], None]:
    """Return a function that has a new thread compute on the GPU of this one."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def exact_device(device: torch.device) -> torch.device:
    """Return the device that computes float64 for tensors of a device: itself, or the CPU."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def exact(x: Tensor) -> Tensor:
    """Convert a tensor to float64, on its own device or, if that has no float64, on the CPU."""
    return x.to(exact_device(x.device)).double()


def _free(locks: list[Path]) -> int:
    """The place of a lock among these that no other job holds: it is this process's from now on."""
    said = False
    while True:
        for index, lock in enumerate(locks):
            if _held.take(lock):
                return index
        if not said:
            log.info("waiting for a GPU that no other job uses (%s)", locks[0].parent)
        said = True
        time.sleep(LOOK_SECONDS)


def _lock(index: int) -> Path:
    """The lock of a visible GPU, named as the machine or its scheduler names it."""
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return _lock_named(visible[index].strip() if index < len(visible) else str(index))


def _lock_named(own: str) -> Path:
    job = next((os.environ[name] for name in JOBS if name in os.environ), "machine")
    folder = Path(tempfile.gettempdir(), f"nullsae-gpus-{os.getuid()}")
    return folder / re.sub(r"[^\w.-]", "_", f"{job}-{own}.lock")


def _unusable(what: str) -> str:
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    try:
        found = re.search(
            r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER.read_text(encoding="utf-8")
        )
    except OSError:
        found = None
    driver = f"NVIDIA driver {found[1]}" if found else "no NVIDIA driver is loaded here"
    return (
        f"{what}, and PyTorch {torch.__version__}, built for {built}, cannot use it ({driver}); "
        f"install a PyTorch that fits the driver, or set compute.device: cpu"
    )
