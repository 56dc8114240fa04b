"""Run the real workflow on the cluster of `cluster.sh`, and disturb it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from workflow_study import Study

CLUSTER = Path(__file__).with_name("cluster.sh")
# Exit code of the script if no cluster can be started.
CANNOT = 77
# For a run of this study on a busy machine.
PATIENCE_SECONDS = 420.0
# Less than twice what the training of an SAE requests.
MAX_MEGABYTES = 6_000
# Seconds of training on any machine: SLURM continues a frozen process before it ends it.
SUBJECT_STEPS, SAE_STEPS = 300, 8_192
# Records each `nullsae` that a job starts, as `Started` reads it. The GPUs are not real: a job that
# knew of its GPU would stop, since it cannot use it.
WRAPPER = """#!/bin/sh
printf '%s %s %s %s %s\\n' "$(date +%s.%N)" $$ "${{SLURM_JOB_ID:-local}}" \\
    "${{CUDA_VISIBLE_DEVICES:-none}}" "$*" | tr '\\n' ' ' | cut -c 1-4000 >> {log}
exec env -u CUDA_VISIBLE_DEVICES -u SLURM_STEP_GPUS -u SLURM_JOB_GPUS {nullsae} "$@"
"""


def small(config: dict[str, Any]) -> None:
    """Configure few jobs, some long enough to be interrupted in the middle."""
    config["compute"]["device"] = "auto"
    config["subjects"]["small"]["source"]["steps"] = SUBJECT_STEPS
    config["saes"]["topk"].update(batch_tokens=64, epochs=32, checkpoint_every_steps=10**6)
    config["explainers"] = {"lexical": {"kind": "lexical"}}
    config["scorers"] = {"detection": {"kind": "detection"}}


@dataclass(frozen=True)
class Started:
    """A `nullsae` that a job started."""

    at: float
    pid: int
    job: str
    device: str
    """`CUDA_VISIBLE_DEVICES`, or none."""
    line: str
    """Its arguments."""

    @property
    def verb(self) -> str:
        return self.line.split()[0]


@dataclass(frozen=True)
class Ended:
    """A job that ended according to SLURM; times in whole seconds."""

    job: str
    state: str
    partition: str
    start: float
    end: float
    limit_minutes: int
    megabytes: int


@dataclass(frozen=True)
class SlurmStudy(Study):
    """A study whose jobs run on the cluster."""

    cluster: Path
    """Folder of the running cluster."""

    @property
    def environment(self) -> dict[str, str]:
        given = super().environment
        wrapped = f"{self.folder / 'bin'}{os.pathsep}{given['PATH']}"
        return {**given, "PATH": wrapped, "OMP_NUM_THREADS": "1"}

    @property
    def profile(self) -> Path:
        return self.folder / "site"

    def prepare(self) -> SlurmStudy:
        """Write the site's profile, from the project's, and the wrapper that records starts."""
        project = self.tree / "profiles/slurm"
        given = yaml.safe_load((project / "profile.yaml").read_text(encoding="utf-8"))
        given["slurm-status-command"] = "squeue"
        given["slurm-init-seconds-before-status-checks"] = 1
        given["latency-wait"] = 20
        given["default-resources"] |= {"max_mem_mb": MAX_MEGABYTES, "max_runtime": 1_440}
        self.profile.mkdir()
        (self.profile / "profile.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
        partitions = (project / "partitions.yaml").read_text(encoding="utf-8")
        (self.profile / "partitions.yaml").write_text(partitions, encoding="utf-8")
        wrapper = self.folder / "bin/nullsae"
        wrapper.parent.mkdir()
        nullsae = Path(sys.executable).with_name("nullsae")
        wrapper.write_text(WRAPPER.format(log=self.folder / "started.log", nullsae=nullsae))
        wrapper.chmod(0o755)
        return self

    def command(self, *arguments: str, cores: int = 2, gpu: int = 1) -> list[str]:
        del cores, gpu  # SLURM has them
        tree = self.tree
        return [
            *(sys.executable, "-m", "snakemake", "-s", f"{tree}/Snakefile"),
            *("--directory", str(self.folder), "--workflow-profile", "none"),
            *("--profile", str(self.profile), *arguments),
        ]

    @contextmanager
    def running(self, *arguments: str, log: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run Snakemake in the background, its output in a file; kill it at the block's end."""
        with open(self.folder / log, "wb") as stream:
            process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        except BaseException:
            # pytest prints it with the failure.
            print((self.folder / log).read_text(encoding="utf-8")[-6000:], *self.ended(), sep="\n")
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def started(self, verb: str = "", *, since: float = 0.0) -> list[Started]:
        """Return what jobs started, in order; only one verb, and after a time, if given."""
        file = self.folder / "started.log"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        found = []
        for line in lines:
            at, pid, job, device, given = line.split(" ", 4)
            found.append(Started(float(at), int(pid), job, device, given))
        jobs = (s for s in found if s.job != "local")
        return [s for s in jobs if verb in ("", s.verb) and s.at >= since]

    def ended(self) -> list[Ended]:
        """Return this study's jobs in order of their ends; restarted ones occur repeatedly."""
        found = []
        for line in (self.cluster / "log/jobs.log").read_text(encoding="utf-8").splitlines():
            given = dict(part.split("=", 1) for part in line.split() if "=" in part)
            if Path(given["WorkDir"]) != self.folder:
                continue
            megabytes = re.search(r"mem=([\d.]+)([MG])", given["Tres"])
            assert megabytes is not None, line
            found.append(
                Ended(
                    given["JobId"],
                    given["JobState"],
                    given["Partition"],
                    _seconds(given["StartTime"]),
                    _seconds(given["EndTime"]),
                    int(given["TimeLimit"]),
                    round(float(megabytes[1]) * {"M": 1, "G": 1024}[megabytes[2]]),
                )
            )
        return found


@dataclass
class BadDay:
    """A study that finished on the cluster despite all disturbances, and its records."""

    study: SlurmStudy
    first_log: str
    """Snakemake's output until it was killed."""
    second_log: str
    beside: str
    """The output of a concurrent run in its folder."""
    cancelled: Started
    """The subject's training that `scancel` ended."""
    out_of_time: Started
    """The SAE training that its time limit ended."""
    interrupted: list[Started] = field(default_factory=list)
    """Jobs that ran on the node that went down."""
    left_in_queue: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    """Logs of the two trainings, at their ends."""


def _seconds(time_: str) -> float:
    return datetime.fromisoformat(time_).timestamp()


def slurm(*command: str) -> str:
    """Return the output of a SLURM command."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def queue(states: str = "PD,R,CG,CF,S") -> list[str]:
    """Return the ids of the jobs in the queue."""
    return slurm("squeue", "-h", "-t", states, "-o", "%i").split()


def alive(jobs: Iterable[str]) -> list[str]:
    """Return the jobs that still have processes, even if the controller disagrees."""
    titles = (p.info["cmdline"] for p in psutil.process_iter(["cmdline"]))
    steps = [title[0] for title in titles if title and title[0].startswith("slurmstepd: ")]
    return [job for job in jobs if any(step.startswith(f"slurmstepd: [{job}.") for step in steps)]


def wait_for(what: str, found: Callable[[], Any], process: subprocess.Popen[bytes] | None) -> Any:
    """Wait until `found` returns something, and return it; `process` must live until then."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (value := found()):
        assert process is None or process.poll() is None, f"Snakemake ended before {what}"
        late = f"{what}: not within {PATIENCE_SECONDS} s"
        assert time.monotonic() < end, f"{late}\n{slurm('sinfo', '-N', '-R')}\n{slurm('squeue')}"
        time.sleep(0.02)
    return value


def training(pid: int) -> bool:
    """Return whether a process catches SIGTERM, as a training does, by its /proc entry."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", text, re.M)
    assert caught is not None
    return bool(int(caught[1], 16) & 1 << (signal.SIGTERM - 1))


def freeze_training(
    study: SlurmStudy, verb: str, process: subprocess.Popen[bytes], since: float, holds: str = ""
) -> Started:
    """Stop a process in the middle of its steps; SLURM's signals continue it."""

    def find() -> Started | None:
        for begun in study.started(verb, since=since):
            if holds in begun.line and training(begun.pid):
                return begun
        return None

    begun: Started = wait_for(f"{verb} in training", find, process)
    os.kill(begun.pid, signal.SIGSTOP)
    return begun
