"""Which GPU a job takes. The GPUs are faked in PyTorch; locks and processes are real."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nullsae.core import devices
from nullsae.core.errors import UserError
from nullsae.core.locking import Alone

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine without grants, with its own lock files."""
    for name in (*devices.GRANTS, *devices.JOBS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(devices, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(devices, "_held", Alone())
    devices.device_of.cache_clear()
    devices.hold_others.cache_clear()
    yield monkeypatch
    devices.device_of.cache_clear()
    devices.hold_others.cache_clear()
    devices._held.release()


@pytest.fixture
def gpus(machine: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make PyTorch report two GPUs."""
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: 2)
    machine.setattr(torch.cuda, "set_device", lambda index: None)
    machine.setattr(torch, "zeros", lambda n, device: None)
    return machine


def job(name: str, parent: Any) -> None:
    devices.device_of.cache_clear()
    parent.send(str(devices.device_of(name)))
    parent.poll(60)


def start(name: str) -> tuple[Any, Any]:
    """Start a job that reports which GPU it took, and ends on request."""
    own, other = FORK.Pipe()
    process = FORK.Process(target=job, args=(name, other))
    process.start()
    return process, own


def told(job: tuple[Any, Any]) -> str:
    assert job[1].poll(30)
    found: str = job[1].recv()
    return found


def test_jobs_on_one_machine_take_different_gpus_and_wait_for_one(
    gpus: pytest.MonkeyPatch,
) -> None:
    first, second = start("auto"), start("cuda")
    assert {told(first), told(second)} == {"cuda:0", "cuda:1"}
    third = start("auto")
    assert not third[1].poll(0.5), "both are taken"
    # A killed job holds nothing.
    first[0].kill()
    first[0].join(30)
    assert told(third) in ("cuda:0", "cuda:1")
    for process, pipe in (second, third):
        pipe.send("end")
        process.join(30)
        assert process.exitcode == 0
    assert str(devices.device_of("cuda:1")) == "cuda:1"


def test_a_spread_subject_holds_the_gpus_it_asks_for_or_all_free_ones(
    gpus: pytest.MonkeyPatch,
) -> None:
    gpus.setattr(torch.cuda, "device_count", lambda: 4)
    other = start("cuda:2")
    assert told(other) == "cuda:2"
    own = devices.device_of("cuda")
    with pytest.raises(UserError, match=r"gpus: 4, but only 3 of the 4 GPUs here are free.*gpu=4"):
        devices.hold_others(own, 4)
    devices._held.release()
    devices.device_of.cache_clear()
    own = devices.device_of("cuda:1")
    assert devices.hold_others(own, 2) == devices.hold_others(own, 2) == (0, 1)
    assert devices.hold_others(own, None) == (1, 3)
    third = start("cuda")
    assert not third[1].poll(0.2), "all are held"
    devices._held.release()  # one after another
    assert told(third) in ("cuda:0", "cuda:1", "cuda:3")
    for process, pipe in (other, third):
        pipe.send("end")
        process.join(30)


def test_the_gpu_of_a_mac_is_held_by_one_job_and_refused_elsewhere(
    machine: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="'mps', but this is not a Mac with a GPU"):
        devices.device_of("mps")
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    first = start("mps")
    assert told(first) == "mps"
    second = start("mps")
    assert not second[1].poll(0.2), "it is held"
    first[1].send("end")
    assert told(second) == "mps"
    second[1].send("end")
    # Other devices compute in float64 themselves, MPS on the CPU.
    assert devices.exact_device(torch.device("mps")) == torch.device("cpu")
    assert devices.exact_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert devices.exact(torch.ones(2)).dtype == torch.float64


def test_gpu_0_of_two_scheduler_jobs_counts_as_two_gpus(
    gpus: pytest.MonkeyPatch,
) -> None:
    gpus.setenv("CUDA_VISIBLE_DEVICES", "0")
    locks = set()
    for number in ("11", "12"):
        gpus.setenv("SLURM_JOB_ID", number)
        locks.add(devices._lock(0))
    gpus.delenv("SLURM_JOB_ID")
    gpus.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a/7")
    locks |= {devices._lock(0), devices._lock(1)}
    names = {"11-0.lock", "12-0.lock", "machine-3.lock", "machine-GPU-5a_7.lock"}
    assert {lock.name for lock in locks} == names


def test_an_index_beyond_the_last_gpu_is_refused(gpus: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'cuda:2', but there are 2 GPUs here"):
        devices.device_of("cuda:2")


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.device_of("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="'cuda', but there is no CUDA device here; use auto"):
        devices.device_of("cuda")


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed", "driver 470.82.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.1", "driver 570.1"),
        (None, "no NVIDIA driver is loaded here"),
    ],
)
def test_a_granted_gpu_that_cannot_be_used_is_an_error_that_names_the_driver(
    machine: pytest.MonkeyPatch, tmp_path: Path, text: str | None, driver: str
) -> None:
    if text is not None:
        (tmp_path / "version").write_text(text)
    machine.setattr(devices, "DRIVER", tmp_path / "version")
    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setenv("SLURM_STEP_GPUS", "3")
    for name in ("auto", "cuda"):
        with pytest.raises(UserError, match=r"was given a GPU \(SLURM_STEP_GPUS=3\)") as caught:
            devices.device_of(name)
        assert driver in str(caught.value)
        assert torch.__version__ in str(caught.value)
    # A study that stays on the CPU does not ask for a GPU; a user who hides GPUs grants none.
    assert devices.device_of("cpu") == torch.device("cpu")
    machine.delenv("SLURM_STEP_GPUS")
    machine.setenv("CUDA_VISIBLE_DEVICES", "-1")
    devices.device_of.cache_clear()
    assert devices.device_of("auto") == torch.device("cpu")
