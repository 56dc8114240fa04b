"""Which rules' code changed since the study's files were made."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nullsae.jobs.code_hash import file_digests
from nullsae.jobs.code_record import Record, noted_files, read_record
from nullsae.jobs.rules import rules
from nullsae.jobs.shared_training import PREFIX, rule_of

# A hash of code among the params that Snakemake records.
_HASH = re.compile(r"'[0-9a-f]{16}'")


def recorded_code(params: Iterable[str] | None) -> str | None:
    """Return the hash of code in the params that Snakemake recorded for a file, or None."""
    return next((text[1:-1] for text in params or () if _HASH.fullmatch(text)), None)


def recorded_cells(params: Iterable[str] | None) -> dict[tuple[str, str, int], str]:
    """Return the hash of code of each SAE that a job trained, by site, recipe and seed."""
    for text in params or ():
        if '"cells"' in text:
            cells = json.loads(ast.literal_eval(text))["cells"]
            return {(c["site"], c["sae"], c["seed"]): c.get("code", "") for c in cells}
    return {}


def is_other_code(rule: str, present: str, recorded: str, record: Record) -> bool:
    """Return whether two hashes of a rule's code differ in code, rather than in what a config uses.

    A config that names another explainer makes the report run other files. So only files that both
    hashes cover count, and new ones that all jobs of the rule run.

    Args:
        rule: its name.
        present: a hash that this process computed.
        recorded: the hash that a file was made by.
        record: the files of each hash; if it lacks one, different hashes are different code.
    """
    before = record.get(rule, {}).get(recorded)
    if present == recorded or before is None:
        return present != recorded
    now = noted_files(rule, present)
    edited = any(before[name] != now[name] for name in before.keys() & now.keys())
    return edited or not file_digests(*rules()[rule].files).keys() <= before.keys()


def changed_code(dag: Any, root: Path) -> tuple[list[str], int]:
    """Return the rules whose code changed since their files were made, and how many jobs rerun.

    Only jobs that Snakemake is about to run are checked, and nothing is written.

    Args:
        dag: Snakemake's resolved DAG.
        root: the folder of the study, which Snakemake has left at the end of a dry run.
    """
    made, changes = set(), []
    record: Record | None = None
    # At the end of a dry run, Snakemake considers its jobs finished.
    for job in dag.needrun_jobs(exclude_finished=False):
        # Only hashes: other params take time.
        present = getattr(job.rule.params, "code", None) if job.output else None
        if not callable(present):
            continue  # a rule of an importing workflow
        code = present(job.wildcards)
        found = dag.workflow.persistence.metadata(job.output[0])
        if found is None:
            continue
        made.add(job)
        recorded = recorded_code(found.params)
        if recorded in (None, code):
            continue
        if job.rule.name.startswith(PREFIX):
            before, now = recorded_cells(found.params), recorded_cells([repr(job.params.config)])
            is_other = any(before[cell] != now[cell] for cell in before.keys() & now.keys())
        else:
            record = read_record(root) if record is None else record
            is_other = is_other_code(code_of(job)[0], code, str(recorded), record)
        if is_other:
            changes.append(job)
    again = made.intersection(dag.bfs(dag.depending, *changes)) if changes else set()
    stages = {code_of(job)[0] for job in changes}
    return [name for name in rules() if name in stages], len(again)


def code_of(job: Any) -> tuple[str, dict[str, Any]]:
    """Return the rule of `jobs.rules` whose code a Snakemake job runs, and the keys of its code."""
    named = getattr(job.rule.params, "code", None)
    rule, more = getattr(named, "of", (rule_of(job.rule.name), {}))
    return rule, {**{name: str(value) for name, value in job.wildcards.items()}, **more}


def changed_code_line(changed: Sequence[str], n_jobs: int, options: str) -> str:
    """Return a message about `changed_code`, with the command that keeps the results.

    Args:
        changed: the rules whose code changed.
        n_jobs: how many jobs run again.
        options: the options of `nullsae accept` that name the study.
    """
    jobs = "1 job runs" if n_jobs == 1 else f"{n_jobs} jobs run"
    command = " ".join(filter(None, ("nullsae accept", *map(shlex.quote, changed), options)))
    return (
        f"code of {', '.join(changed)} changed since results/ was made: {jobs} again; `{command}` "
        f"keeps what was made, if the change does not alter it"
    )
