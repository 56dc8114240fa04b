"""The device of a job: a GPU that no other job on the machine is at, or why there is none."""

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

from nullsae.core.errors import UserError, first_line
from nullsae.core.locking import Alone

log = logging.getLogger(__name__)

# Variables by which a scheduler, or a user, says that a job has a GPU.
GRANTS = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
NONE_GRANTED = ("", "-1", "NoDevFiles")
# A scheduler's jobs may each call their own GPU 0.
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
DRIVER = Path("/proc/driver/nvidia/version")
LOOK_SECONDS = 1.0

# Locks end with the process.
_held = Alone()


@cache
def device_of(name: str) -> torch.device:
    """The device that `compute.device` means here, for the rest of the process.

    `cuda`, and `auto` where there is CUDA, take the first GPU that no other job holds, and wait for
    one where all are held; `cuda:N` waits for that one. It becomes the default of this thread.

    Raises:
        UserError: CUDA is asked for and not there, or a GPU was granted and cannot be used: names
            the versions of driver and PyTorch.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        grant = next((v for v in GRANTS if os.environ.get(v, "") not in NONE_GRANTED), None)
        if grant is not None:
            raise UserError(_unusable(f"this job was given a GPU ({grant}={os.environ[grant]})"))
        if name == "auto":
            return torch.device("cpu")
        raise UserError(f"config: compute.device: {name!r}, but no CUDA device is here; use auto")
    count = torch.cuda.device_count()
    wanted = [int(name.removeprefix("cuda:"))] if ":" in name else list(range(count))
    if wanted[-1] >= count:
        raise UserError(f"config: compute.device: {name!r}, but there are {count} GPUs here")
    index = _free(wanted)
    try:
        torch.cuda.set_device(index)
        torch.zeros(1, device=f"cuda:{index}")
    except RuntimeError as error:
        raise UserError(_unusable(f"GPU {index}: {first_line(error)}")) from None
    return torch.device("cuda", index)


def same_device() -> Callable[[], None]:
    """What a new thread calls to compute on the GPU of this one."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def _free(wanted: list[int]) -> int:
    """One of these GPUs, held by this process from now on."""
    said = False
    while True:
        for index in wanted:
            if _held.take(_lock(index)):
                return index
        if not said:
            log.info("waiting for a GPU that no other job is at (%s)", _lock(wanted[0]).parent)
        said = True
        time.sleep(LOOK_SECONDS)


def _lock(index: int) -> Path:
    """The lock of a visible GPU, named as the machine or its scheduler names it."""
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    own = visible[index].strip() if index < len(visible) else str(index)
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
