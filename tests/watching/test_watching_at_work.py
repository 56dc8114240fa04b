"""Whoever would work beside a run that goes on is refused, in one line that names it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from snakemake.exceptions import LockException
from test_watching_run import a_run, told

from nullsae.watching.at_work import check_unlock, refusal, run_at_work
from refusing import refused

UNLOCK = ["snakemake", "-s", "Snakefile", "--unlock"]


def here(pid: int) -> dict[str, Any]:
    """A run of this machine, which began after the process."""
    return {"host": socket.gethostname(), "pid": pid, "time": time.time() + 60}


def lock_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As Snakemake says it in a locked folder."""
    monkeypatch.chdir(folder)
    return f"LockException:\n{LockException()}"


def test_the_lock_of_a_run_that_goes_on_stays(tmp_path: Path) -> None:
    check_unlock(tmp_path, UNLOCK)
    a_run(tmp_path, told(**here(os.getpid())))
    said = refused(check_unlock, tmp_path, UNLOCK)
    assert said.startswith(f"--unlock: a run is running here (process {os.getpid()}, since ")
    assert f"`kill {os.getpid()}`" in said
    check_unlock(tmp_path, ["snakemake", "-n"])


def test_the_lock_of_a_killed_run_is_removed_whether_or_not_anybody_saw_it_die(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(["sleep", "60"])
    a_run(tmp_path, told(**here(process.pid)))
    assert run_at_work(tmp_path) is not None
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert run_at_work(tmp_path) is None
    check_unlock(tmp_path, UNLOCK)
    process.wait()
    check_unlock(tmp_path, UNLOCK)


def test_of_two_runs_the_one_that_goes_on_counts(tmp_path: Path) -> None:
    older = a_run(tmp_path, told(**here(os.getpid()))).file
    older.rename(older.with_name(f"2025-{older.name}"))
    a_run(tmp_path, told(**here(1) | {"host": "elsewhere"}))  # of which nobody here knows
    assert f"process {os.getpid()}," in refused(check_unlock, tmp_path, UNLOCK)


def test_a_locked_folder_is_one_line_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(lock_error(tmp_path, monkeypatch))
    assert said is not None
    assert said.startswith(f"{tmp_path}: cannot be locked: another Snakemake is running here")
    unlock = shlex.split(said.split("`")[1])
    assert unlock[0] == "snakemake"
    assert unlock[unlock.index("--directory") + 1 :] == [str(tmp_path), "--unlock"]
    a_run(tmp_path, told(**here(os.getpid())))
    said = refusal(lock_error(tmp_path, monkeypatch))
    assert said is not None
    assert f"(process {os.getpid()}, since " in said
    assert "--unlock" not in said
    assert "\n" not in said
    assert refusal("WorkflowError:\nFailed") is None
