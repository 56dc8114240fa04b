"""A cluster, a study that runs on this machine, and one that has a bad day on the cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from slurm_study import (
    CANNOT,
    CLUSTER,
    BadDay,
    SlurmStudy,
    alive,
    freeze_training,
    queue,
    slurm,
    small,
    wait_for,
)
from workflow_study import TIMEOUT_SECONDS, Study, cell, new_study

from nullsae import paths


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """Folder of a running cluster."""
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("needs Snakemake's executor for SLURM: make test-slurm")
    # Not below pytest's folder: munged requires world-readable folders above its socket.
    folder = Path(tempfile.mkdtemp(prefix="nullsae-cluster-"))
    folder.chmod(0o755)
    environment = {**os.environ, "NULLSAE_CLUSTER": str(folder)}

    def ask(verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(CLUSTER), verb],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )

    begun = ask("start")
    if begun.returncode == CANNOT:
        shutil.rmtree(folder)
        pytest.skip(begun.stderr.strip())
    try:
        assert begun.returncode == 0, begun.stderr
        yield folder
    finally:
        ended = ask("stop")
    assert ended.returncode == 0, ended.stderr
    assert not folder.exists()


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Study:
    """The study, finished on this machine without SLURM."""
    study = new_study(tmp_path_factory.mktemp("local") / "study", tree).configure(small)
    study.make(gpu=2)
    return study


@pytest.fixture
def study(tmp_path: Path, local: Study, cluster: Path) -> SlurmStudy:
    """A copy of the finished study, prepared for the cluster."""
    shutil.copytree(local.folder, tmp_path / "study")
    return SlurmStudy(tmp_path / "study", local.tree, cluster).prepare()


def _stopped(log: Path) -> str | None:
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    return text if "stopped by SIGTERM" in text else None


@pytest.fixture(scope="session")
def bad_day(
    tmp_path_factory: pytest.TempPathFactory, tree: Path, cluster: Path, local: Study
) -> BadDay:
    """A study disturbed in two runs.

    First run: a job gets too little memory; then Snakemake is killed and all jobs are cancelled.
    Second run: another Snakemake tries the folder, a node goes down and comes back, and a job runs
    out of time.
    """
    folder = tmp_path_factory.mktemp("slurm") / "study"
    new_study(folder, tree).configure(small)
    # The same file, by name and content, so that the two studies are equal.
    shutil.copy2(local.folder / "docs.jsonl", folder / "docs.jsonl")
    study = SlurmStudy(folder, tree, cluster).prepare()

    starved = "train_subject:mem_mb=300 * 6 ** (attempt - 1)"
    with study.running("--set-resources", starved, log="first.log") as first:
        (out_of_memory,) = wait_for(
            "a job out of memory", lambda: [e for e in study.ended() if e.state == "FAILED"], first
        )
        cancelled = freeze_training(study, "train_subject", first, since=out_of_memory.end)
    jobs = [line.split() for line in slurm("squeue", "-h", "-o", "%i %j").splitlines()]
    slurm("scancel", *(job for job, name in jobs if name.startswith("nullsae_")))
    wait_for("an empty queue", lambda: not queue(), None)
    day = BadDay(study, (folder / "first.log").read_text(), "", "", cancelled, cancelled)
    log = folder / "results/logs/train_subject/subject=small.log"
    day.logs["train_subject, cancelled"] = log.read_text()

    study.make("--unlock")
    since = time.time()
    with study.running(log="second.log") as second:
        day.interrupted = wait_for(
            "a capture", lambda: study.started("cache_activations", since=since), second
        )
        day.logs["train_subject, resumed"] = log.read_text()
        on_node = slurm("squeue", "-h", "-w", "gpu0", "-o", "%i").split()
        slurm("scontrol", "update", "nodename=gpu0", "state=down", "reason=test")
        day.beside = study.snakemake().stdout
        # A node with a process of a job refuses to start the job again, and is drained.
        wait_for("the end of the node's jobs", lambda: not alive(on_node), second)
        slurm("scontrol", "update", "nodename=gpu0", "state=resume")
        day.out_of_time = freeze_training(study, "train_sae", second, since, "variant=trained/")
        # Only now, because a busy machine may take longer than any limit to start the job.
        slurm("scontrol", "update", f"jobid={day.out_of_time.job}", "timelimit=1")
        of_sae = folder / paths.LOG.format(rule="train_sae", keys=cell(paths.CELL_KEYS))
        # Snakemake prints the log as soon as SLURM reports the end of the job, and the next attempt
        # overwrites it: what the training logs in between is nowhere else.
        day.logs["train_sae, out of time"] = wait_for(
            "a training that its time limit ends", lambda: _stopped(of_sae), second
        )
        code = second.wait(TIMEOUT_SECONDS)
    day.second_log = (folder / "second.log").read_text()
    assert code == 0, day.second_log[-6000:]
    day.left_in_queue = queue()
    return day
