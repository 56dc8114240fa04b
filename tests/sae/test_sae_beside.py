"""A training that outlives its parent is not joined by a second one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from nullsae.config.saes import Sae
from nullsae.sae.train_sae import train_sae
from small_chain import train_params, write_site

# The verb; it stops at a step as if it took long, and waits less than a minute for others.
VERB = """
import os, signal, sys
from nullsae.cli.main import main
from nullsae.core import locking
from nullsae.sae.training_run import Run

stop_at, real, locking.WAIT_SECONDS = int(sys.argv.pop(1)), Run.step, 0.5

def step(self, batch):
    if self.trainer.step == stop_at:
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(self, batch)

Run.step = step
main()
"""


@pytest.mark.slow
def test_the_next_run_names_the_orphan_and_goes_on_once_that_is_ended(tmp_path: Path) -> None:
    x = torch.randn(1500, 24, generator=torch.Generator().manual_seed(0))
    write_site(tmp_path / "train", x, [500, 1000])
    write_site(tmp_path / "eval", x[:400], [400])
    recipe = Sae.of(k=3, n_latents=64, batch_tokens=128, epochs=2, checkpoint_every_steps=5)
    params = train_params(recipe, activations_key="key")
    (tmp_path / "params.json").write_text(params.model_dump_json())

    def verb(stop_at: int = -1) -> list[str]:
        return [
            *(sys.executable, "-c", VERB, str(stop_at), "train_sae", "--params", "params.json"),
            *("--train-activations", "train/manifest.json"),
            *("--eval-activations", "eval/manifest.json"),
            *("--output", "sae", "--work", "work"),
        ]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(verb(), cwd=tmp_path, capture_output=True, text=True, timeout=100)

    train_sae(
        params,
        train_activations=tmp_path / "train/manifest.json",
        eval_activations=tmp_path / "eval/manifest.json",
        output=tmp_path / "whole",
        work=tmp_path / "work",
    )
    # A shell stays in between, like that of a Snakemake job.
    shell = subprocess.Popen(["bash", "-c", '"$@"; true', "_", *verb(13)], cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not (orphans := _stopped(shell.pid)):
        assert shell.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    [orphan] = orphans
    try:
        shell.kill()
        shell.wait()
        work = tmp_path / "work"
        before = {file.name: file.read_bytes() for file in work.iterdir()}
        assert json.loads(before[next(n for n in before if n.endswith(".lock"))])["pid"] == orphan
        second = run()
        assert second.returncode == 2
        [error] = [line for line in second.stderr.splitlines() if "error" in line]
        assert error.startswith("nullsae train_sae: error: work/train_sae-")
        assert f": process {orphan} on " in error
        assert f"end it with `kill {orphan}` there, and run again" in error
        assert {file.name: file.read_bytes() for file in work.iterdir()} == before
        assert not (tmp_path / "sae").exists()
    finally:
        os.kill(orphan, signal.SIGKILL)

    third = run()
    assert third.returncode == 0, third.stderr
    assert "resumed at step 10 of 22" in third.stderr
    for file in ("sae.safetensors", "cfg.json"):
        whole, resumed = tmp_path / "whole" / file, tmp_path / "sae" / file
        assert whole.read_bytes() == resumed.read_bytes(), file
    assert list(work.iterdir()) == []


def _stopped(shell: int) -> list[int]:
    """Return the stopped children of a process."""
    found = psutil.Process(shell).children()
    return [child.pid for child in found if child.status() == psutil.STATUS_STOPPED]
