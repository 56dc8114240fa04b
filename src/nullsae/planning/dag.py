"""The jobs of a study and their dependencies, from Snakemake's own DAG."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.home import place_of, snakefile_of
from nullsae.jobs.grid import Keys
from nullsae.jobs.shared_training import NO_RESULTS, rule_of
from nullsae.jobs.work import WORK, job_work
from nullsae.jobs.work.amounts import SizedStudy, Work
from nullsae.paths import partition_keys

# Rules whose jobs may only join the outputs of others.
SHARDED = {"explain_latents": "explain_shard", "score_latents": "score_shard"}


@dataclass
class Job:
    """One job."""

    rule: str
    work: Work
    needs: list[int]
    """Indices of the jobs that it waits for, all smaller than its own."""
    cells: list[Keys]
    """Keys of all that it makes."""
    on_gpu: bool = False
    seconds: float = 0.0
    """Time on the GPU, or on one core."""


def planned_jobs(study: SizedStudy, root: Path) -> list[Job]:
    """Return all jobs of a study, as if it had no results, in an order in which they can run.

    Local files of the study are relative to `root`. Nothing is written below its `results/`, and
    no lock is taken.

    Raises:
        UserError: Snakemake finds a mistake.
    """
    jobs: list[Job] = []
    answer = ask_snakemake(study.config, root, "nullsae.planning.dag")
    for rule, cells, needs in _ordered(answer):
        work = job_work(study, rule, cells)
        if SHARDED.get(rule) in {jobs[need].rule for need in needs}:
            work = Work(written_bytes=work.written_bytes)
        jobs.append(Job(rule, work, needs, cells))
    return jobs


def by_rule(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Return the jobs of each rule, in the order of the data flow."""
    found: dict[str, list[Job]] = {rule: [] for rule in WORK}
    for job in jobs:
        found[job.rule].append(job)
    return {rule: made for rule, made in found.items() if made}


def _ordered(answer: Iterable[Any]) -> list[tuple[str, list[Keys], list[int]]]:
    """Return rule, keys of outputs, and needs of each job, sorted by rule but after its needs."""
    flow, jobs = list(WORK), []
    for name, outputs, needs in answer:
        cells = [partition_keys(output) for output in outputs]
        jobs.append((rule_of(name), list({tuple(c.items()): c for c in cells}.values()), needs))
    places: dict[int, int] = {}
    found: list[tuple[str, list[Keys], list[int]]] = []

    def place(index: int) -> None:
        if index not in places:
            rule, cells, needs = jobs[index]
            for need in needs:
                place(need)
            places[index] = len(found)
            found.append((rule, cells, sorted(places[need] for need in needs)))

    for index in sorted(range(len(jobs)), key=lambda i: (flow.index(jobs[i][0]), i)):
        place(index)
    return found


def command_for(root: Path, *options: str) -> str:
    """Return the command that calls Snakemake on a study's folder from anywhere."""
    return shlex.join(("snakemake", *place_of(root), *options))


def ask_snakemake(config: Config, root: Path, module: str) -> Any:
    """Return what a module prints as JSON about a study's jobs, in a process of its own.

    The module gets the Snakefile, the folder and a config file, and sees the jobs of a study
    without results.

    Raises:
        UserError: Snakemake finds a mistake.
    """
    snakefile = snakefile_of(root)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", module, snakefile, root.resolve(), file],
            env={**os.environ, NO_RESULTS: "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{snakefile}: Snakemake found no jobs: {said[-1]}")
    return json.loads(done.stdout)


@contextmanager
def opened_dag(
    snakefile: Path, root: Path, file: Path, targets: Iterable[str] = ()
) -> Iterator[Any]:
    """Yield Snakemake's DAG of all jobs of a config file, in its working folder.

    Args:
        snakefile: the workflow's Snakefile.
        root: the working folder.
        file: the config file.
        targets: rules to request; by default Snakemake's default target.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings import types

    quiet = types.OutputSettings(dryrun=True, quiet={types.Quietness.ALL})
    with SnakemakeApi(quiet) as api:
        config = types.ConfigSettings(configfiles=[file], replace_workflow_config=True)
        resources = types.ResourceSettings()
        given = api.workflow(resources, config, snakefile=snakefile, workdir=root)
        given.dag(types.DAGSettings(targets=set(targets), forceall=True))
        # As in `snakemake --dag` before it draws; no public function returns the jobs.
        workflow = given._workflow
        workflow._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
        workflow._build_dag()
        yield workflow.dag


def print_jobs(snakefile: Path, root: Path, file: Path) -> None:
    """Print Snakemake's jobs as JSON: rule, outputs, indices of the jobs that each waits for."""
    with opened_dag(snakefile, root, file) as dag:
        jobs = [job for job in dag.jobs if job.output]
        places = {job: index for index, job in enumerate(jobs)}
        found = [
            (job.rule.name, list(map(str, job.output)), [places[n] for n in dag.dependencies[job]])
            for job in jobs
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    print_jobs(*map(Path, sys.argv[1:]))
