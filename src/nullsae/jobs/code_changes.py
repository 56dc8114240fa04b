"""Which rules' code is not the code that the study's files were made by."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from nullsae.jobs.rules import rules
from nullsae.jobs.shared_training import rule_of

# How Snakemake writes a hash of code among the params that it records.
_HASH = re.compile(r"'[0-9a-f]{16}'")


def recorded_code(params: Iterable[str] | None) -> str | None:
    """The hash of code among the params that Snakemake recorded for a file; None without one."""
    return next((text[1:-1] for text in params or () if _HASH.fullmatch(text)), None)


def changed_code(dag: Any) -> tuple[list[str], int]:
    """The rules whose code changed since their files were made, and the jobs that so run again.

    Only jobs that Snakemake is about to run are looked at, and nothing is written.

    Args:
        dag: Snakemake's own, worked out.
    """
    made, changes = set(), []
    # At the end of a dry run, Snakemake holds its jobs for finished.
    for job in dag.needrun_jobs(exclude_finished=False):
        # Hashes alone: other params take time.
        present = getattr(job.rule.params, "code", None) if job.output else None
        if present is None:
            continue
        code = present(job.wildcards)
        record = dag.workflow.persistence.metadata(job.output[0])
        if record is None:
            continue
        made.add(job)
        if recorded_code(record.params) not in (None, code):
            changes.append(job)
    again = made.intersection(dag.bfs(dag.depending, *changes)) if changes else set()
    stages = {stage_of(job.rule.name) for job in changes}
    return [name for name in rules() if name in stages], len(again)


def stage_of(name: str) -> str:
    """The rule of `jobs.rules` whose code a rule of the workflow runs."""
    shares = {
        "capture_portion": "cache_activations",
        "explain_shard": "explain_latents",
        "score_shard": "score_latents",
    }
    return shares.get(name, rule_of(name))


def changed_code_line(changed: Sequence[str], n_jobs: int, options: str) -> str:
    """What to say of `changed_code`, with the command that keeps what was made.

    Args:
        changed: the rules whose code changed.
        n_jobs: the jobs that run again.
        options: what says which study is meant, as `nullsae accept` takes it.
    """
    jobs = "1 job runs" if n_jobs == 1 else f"{n_jobs} jobs run"
    command = " ".join(filter(None, ("nullsae accept", *map(shlex.quote, changed), options)))
    return (
        f"code of {', '.join(changed)} changed since results/ was made: {jobs} again; `{command}` "
        f"keeps what was made, if the change does not alter it"
    )
