"""The jobs of a study, with Snakemake's records of the files that they made."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.jobs.code_changes import code_of
from nullsae.planning.dag import ask_snakemake, command_for, opened_dag


@dataclass(frozen=True)
class MadeJob:
    """One job of a study; its files may or may not exist."""

    name: str
    """Name of Snakemake's rule."""
    rule: str
    """The rule of `jobs.rules` whose code it runs."""
    keys: dict[str, Any]
    inputs: list[str]
    outputs: list[str]
    """The outputs that exist."""
    recorded: dict[str, list[str]]
    """By output, the params that it was made with, as Snakemake writes them."""
    others: list[str]
    """The current params, except the slice of the config and the code."""
    has_config: bool
    """Whether the params have a slice of the config."""
    differs: bool
    """Whether its command line or the set of its inputs changed since it ran."""


def made_jobs(config: Config, root: Path) -> list[MadeJob]:
    """Return all jobs of a study and of its toy models, each after those that it reads from.

    Raises:
        UserError: a run is in progress, or Snakemake finds a mistake.
    """
    answer = ask_snakemake(config, root, "nullsae.planning.made")
    if answer is None:
        raise UserError(
            f"{root}: Snakemake has locked this folder: a run is in progress, or was killed; let "
            f"it finish, or remove the lock with `{command_for(root, '--unlock')}`"
        )
    return [MadeJob(**job) for job in answer]


def _jobs(dag: Any) -> Iterator[MadeJob]:
    records = dag.workflow.persistence
    for job in (job for level in dag.toposorted() for job in level if job.output):
        there = [str(file) for file in job.output if Path(file).exists()]
        found = {file: records.metadata(file) for file in job.output if str(file) in there}
        recorded = {str(file): record.params for file, record in found.items() if record}
        named = dict(job.rule.params.items())
        own = {repr(getattr(job.params, n)) for n in ("config", "code") if recorded and n in named}
        yield MadeJob(
            name=job.rule.name,
            rule=code_of(job)[0],
            keys=code_of(job)[1],
            inputs=list(map(str, job.input)),
            outputs=there,
            recorded={file: params for file, params in recorded.items() if params is not None},
            others=[text for text in records._params(job) if text not in own] if recorded else [],
            has_config="config" in named,
            differs=any(records.code_changed(job)) or any(records.input_changed(job)),
        )


def print_jobs(snakefile: Path, root: Path, file: Path) -> None:
    """Print the jobs as JSON; null if a run is in progress."""
    with opened_dag(snakefile, root, file, ("all", "toy")) as dag:
        locked = dag.workflow.persistence.locked
        found = None if locked else [asdict(job) for job in _jobs(dag)]
    print(json.dumps(found))


if __name__ == "__main__":
    print_jobs(*map(Path, sys.argv[1:]))
