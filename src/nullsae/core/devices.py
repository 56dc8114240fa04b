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

# Variables in which a scheduler, or a user, grants a job its GPUs.
GRANTS = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
NONE_GRANTED = ("", "-1", "NoDevFiles")
# Each job of a scheduler may number its GPUs from 0.
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
# Device types without float64; such computations run on the CPU.
WITHOUT_FLOAT64 = {"mps"}
DRIVER = Path("/proc/driver/nvidia/version")
LOOK_SECONDS = 1.0

# The system releases the locks when the process ends.
_held = Alone()


@cache
def device_of(name: str) -> torch.device:
    """Choose the device that `compute.device` means here, for the rest of the process.

    `cuda`, and `auto` if CUDA is available, take the first GPU that no other job holds, or wait
    for one; `cuda:N` waits for GPU N. It becomes the default of this thread. `mps` is the GPU of a
    Mac, held by one job at a time.

    Raises:
        UserError: CUDA or MPS is not available, or a granted GPU cannot be used; names the
            versions of driver and PyTorch.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                "config: compute.device: 'mps', but this is not a Mac with a GPU; use auto"
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
    """Hold further GPUs; return the indices of all GPUs held by this process, ascending.

    Args:
        own: the GPU that `device_of` returned.
        n_gpus: how many the process needs in total; None for all that no other job holds.

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
            f"config: subjects.*.source.gpus: {n_gpus}, but only {len(held)} of the {count} GPUs "
            f"here are free; tell Snakemake how many there are: --resources gpu={count}"
        )
    return tuple(sorted(held))


def same_device() -> Callable[[], None]:
    """Return a function that makes a new thread compute on the GPU of the current one."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def exact_device(device: torch.device) -> torch.device:
    """Return the device for float64 computations on a device's tensors: itself, or the CPU."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def exact(x: Tensor) -> Tensor:
    """Convert a tensor to float64, on its own device if that has float64, else on the CPU."""
    return x.to(exact_device(x.device)).double()


def _free(locks: list[Path]) -> int:
    """Take the first lock that no other job holds, waiting if necessary; return its index."""
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
    """Return the lock file of a visible GPU, named as the machine or its scheduler names it."""
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
