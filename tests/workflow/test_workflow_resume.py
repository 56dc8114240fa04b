from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from workflow_study import TIMEOUT_SECONDS, Study, cell, copy_of

from nullsae import paths, tables

pytestmark = pytest.mark.workflow
CHECKPOINT_STEPS = 50


def slow_training(config: dict[str, Any]) -> None:
    """Make the training take some seconds: 256 steps per epoch."""
    config["saes"]["topk"].update(
        batch_tokens=64, epochs=24, checkpoint_every_steps=CHECKPOINT_STEPS
    )


def history(file: Path) -> list[dict[str, Any]]:
    """Return the training curve without clock times."""
    table = tables.read_table(file, tables.cell_schema("history"))
    rows: list[dict[str, Any]] = table.drop_columns(list(tables.MEASURED["history"])).to_pylist()
    return rows


def start(study: Study, target: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        study.as_a_user().command(target),
        cwd=study.folder,
        env=study.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def checkpoints(study: Study) -> list[Path]:
    return list((study.folder / paths.WORK).glob("train_sae-*.safetensors"))


def kill_at_checkpoint(study: Study, target: str) -> None:
    """Kill Snakemake, its shell and the training at once, without a chance to clean up."""
    process = start(study, target)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not checkpoints(study):
        assert process.poll() is None, "the training ended before its first checkpoint was seen"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert any("train_sae" in argument for p in family for argument in p.cmdline())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survivors = psutil.wait_procs(family[1:], timeout=10)[1]
    for survivor in survivors:
        survivor.kill()
    assert survivors == []


@pytest.mark.slow
def test_a_killed_training_resumes_and_gives_the_same_bytes(study: Study, tmp_path: Path) -> None:
    killed = copy_of(study, tmp_path / "killed").configure(slow_training)
    undisturbed = copy_of(study, tmp_path / "undisturbed").configure(slow_training)
    target = cell(paths.SAE_CONFIG)
    kill_at_checkpoint(killed, target)
    beside = start(undisturbed, target)
    assert not (killed.folder / target).exists()

    locked = killed.snakemake(target)
    assert locked.returncode != 0
    assert "--unlock" in locked.stdout
    killed.make("--unlock")
    killed.make(target)

    keys = cell(paths.CELL_KEYS)
    log = (killed.folder / paths.LOG.format(rule="train_sae", keys=keys)).read_text()
    resumed = re.search(r"^resumed at step (\d+) of (\d+)$", log, re.M)
    ran = re.search(r"^ran (\d+) of (\d+) steps$", log, re.M)
    assert resumed is not None
    assert ran is not None
    first, n_steps = int(resumed[1]), int(resumed[2])
    assert first > 0
    assert first % CHECKPOINT_STEPS == 0
    assert (int(ran[1]), int(ran[2])) == (n_steps - first, n_steps)
    assert checkpoints(killed) == []

    assert beside.wait(TIMEOUT_SECONDS) == 0
    for pattern in (paths.SAE_WEIGHTS, paths.SAE_CONFIG):
        file = cell(pattern)
        assert (killed.folder / file).read_bytes() == (undisturbed.folder / file).read_bytes(), file
    curves = [history(where.folder / cell(paths.HISTORY)) for where in (killed, undisturbed)]
    assert curves[0] == curves[1]
