"""Which rules' code is not the code that the study's files were made by."""

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

# How Snakemake writes a hash of code among the params that it records.
_HASH = re.compile(r"'[0-9a-f]{16}'")


def recorded_code(params: Iterable[str] | None) -> str | None:
    """The hash of code among the params that Snakemake recorded for a file; None without one."""
    return next((text[1:-1] for text in params or () if _HASH.fullmatch(text)), None)


def recorded_cells(params: Iterable[str] | None) -> dict[tuple[str, str, int], str]:
    """The hash of code of each SAE that a job trained, by site, recipe and seed."""
    for text in params or ():
        if '"cells"' in text:
            cells = json.loads(ast.literal_eval(text))["cells"]
            return {(c["site"], c["sae"], c["seed"]): c.get("code", "") for c in cells}
    return {}


def is_other_code(rule: str, present: str, recorded: str, record: Record) -> bool:
    """Whether two hashes of a rule's code differ in code, and not only in what a config uses of it.

    A config that names another explainer has the report run the files of another explainer. So
    only files that both hashes are of count, and new ones that all jobs of the rule run.

    Args:
        rule: its name.
        present: a hash that this process worked out.
        recorded: the hash that a file was made by.
        record: which files it is of; where it does not say so, other hashes are other code.
    """
    before = record.get(rule, {}).get(recorded)
    if present == recorded or before is None:
        return present != recorded
    now = noted_files(rule, present)
    edited = any(before[name] != now[name] for name in before.keys() & now.keys())
    return edited or not file_digests(*rules()[rule].files).keys() <= before.keys()


def changed_code(dag: Any, root: Path) -> tuple[list[str], int]:
    """The rules whose code changed since their files were made, and the jobs that so run again.

    Only jobs that Snakemake is about to run are looked at, and nothing is written.

    Args:
        dag: Snakemake's own, worked out.
        root: the folder of the study: at the end of a dry run, Snakemake has left it.
    """
    made, changes = set(), []
    record: Record | None = None
    # At the end of a dry run, Snakemake holds its jobs for finished.
    for job in dag.needrun_jobs(exclude_finished=False):
        # Hashes alone: other params take time.
        present = getattr(job.rule.params, "code", None) if job.output else None
        if not callable(present):
            continue  # one of an importer's own
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
    """The rule of `jobs.rules` whose code a job of Snakemake's runs, and the keys of its code."""
    named = getattr(job.rule.params, "code", None)
    rule, more = getattr(named, "of", (rule_of(job.rule.name), {}))
    return rule, {**{name: str(value) for name, value in job.wildcards.items()}, **more}


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
