"""`nullsae accept`: show what a code change affects, ask, and record the answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer

from nullsae import __version__, paths
from nullsae.config.read import read_merged_config, study_files
from nullsae.core.errors import UserError
from nullsae.jobs.accepted import Acceptance, append_acceptance, honour, job_name, read_accepted
from nullsae.jobs.code_record import Record, noted_record, read_record
from nullsae.jobs.entry import typed_entries
from nullsae.jobs.rules import rules as all_rules_by_name
from nullsae.planning.accept import Change, Comparison, differing_files
from nullsae.planning.dag import command_for
from nullsae.planning.locks import refuse_locks
from nullsae.planning.made import made_jobs

SHOWN_JOBS = 6
UNRECORDED = "nothing was recorded"
SHOWN_FILES = 12


def accept_code(
    root: Path,
    rules: Sequence[str],
    *,
    all_rules: bool,
    yes: bool,
    overlays: Sequence[Path],
    pairs: Sequence[str],
) -> None:
    """Record that the current code of rules gives the same results as the code that made them.

    Args:
        root: the folder with `config.yaml` and `results/`.
        rules: the rules to accept.
        all_rules: accept all rules instead.
        yes: do not ask.
        overlays: config files merged over `config.yaml`.
        pairs: `KEY=VALUE`, merged last.

    Raises:
        UserError: unknown rule, no results, nothing to accept, no terminal, or a run in progress.
    """
    known = all_rules_by_name()
    if bool(rules) == all_rules:
        raise UserError("give the rules whose code to accept, or --all")
    for rule in rules:
        if rule not in known:
            raise UserError(f"{rule!r} is not one of the rules: {', '.join(known)}")
    if not (root / paths.RUN_CONFIG).parent.is_dir():
        raise UserError(f"{root / 'results'}: no results here; --root names the study's folder")
    config = read_merged_config(study_files(root, overlays), _given(pairs))
    honour(read_accepted(root))
    record = read_record(root)
    found = Comparison(config, list(known) if all_rules else rules, record, root)
    found.look_at(made_jobs(config, root))
    noted = noted_record()
    for change in found.changes.values():
        if change.rule in found.accepted and (change.jobs or change.n_lost):
            _show(change, record, noted)
    codes = tuple(found.codes(noted))
    if found.activations:
        print(f"kept: the keys of {_n(len(found.activations), 'split')} of activations")
    if not codes and not found.activations:
        given = ("--configfile", *map(str, overlays)) if overlays else ()
        dry = command_for(root, "-n", *given, *(("--config", *pairs) if pairs else ()))
        raise UserError(_nothing(found, "all rules" if all_rules else ", ".join(rules), dry))
    if found.again:
        told = ", ".join(f"{rule} ({n})" for rule, n in found.again.items())
        print(f"Run again by unchanged code, because their params or inputs changed: {told}.")
    if found.others:
        print(f"Not accepted, so run again with all that depends on it: {', '.join(found.others)}.")
    if not yes:
        _ask()
    # One that began meanwhile read what counted before.
    refuse_locks(root, UNRECORDED)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    acceptance = Acceptance(
        date=now, nullsae=__version__, codes=codes, activations=found.activations
    )
    append_acceptance(root, acceptance)
    print(f"Recorded in {root / paths.ACCEPTED}; the tables will say so from their next run on.")


def _given(pairs: Sequence[str]) -> dict[str, object]:
    """Parse `--config` as Snakemake does."""
    from snakemake.cli import parse_config

    try:
        return {**parse_config(list(pairs)), **typed_entries(pairs)} if pairs else {}
    except ValueError as error:
        raise UserError(f"--config: {error}") from None


def _show(change: Change, record: Record, noted: Record) -> None:
    """Print a change: hashes, files, jobs."""
    print(f"{change.rule}: code {change.recorded} -> {change.present}")
    files = differing_files(change, record, noted)
    if files is None:
        print(f"  files: unknown; {paths.CODE} has no record of {change.recorded}")
    else:
        print(f"  files: {_some(files, SHOWN_FILES)}")
    if change.jobs:
        count = f"{_n(len(change.jobs), 'job')}, {_n(change.n_files, 'file')}"
        print(f"  kept: {count}: {_some([job_name(keys) for keys in change.jobs], SHOWN_JOBS)}")
    if change.n_lost:
        print(
            f"  run again anyway: {_n(change.n_lost, 'job')}; more than their code changed, "
            f"or their inputs are made again"
        )


def _some(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _n(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _nothing(found: Comparison, named: str, dry: str) -> str:
    changed = {change.rule for change in found.changes.values() if change.n_lost} & found.accepted
    if changed:
        return (
            f"{', '.join(sorted(changed))}: nothing can be kept: more than the code changed since "
            f"results/ was made, or the inputs of these jobs are made again; "
            f"{_also(found.others)}`{dry}` says why"
        )
    hint = f" (it changed for {', '.join(sorted(found.others))})" if found.others else ""
    return (
        f"{named}: nothing to accept: results/ was made by the current code, or by code that was "
        f"accepted{hint}"
    )


def _also(others: set[str]) -> str:
    return f"the code of {', '.join(sorted(others))} changed too; " if others else ""


def _ask() -> None:
    print(
        "Accept only if the current code would give the same files. They stay as they are; new "
        "cells are made by the current code."
    )
    if not sys.stdin.isatty():
        raise UserError("cannot ask without a terminal; read the above and give --yes")
    if not typer.confirm("Accept?"):
        raise UserError(UNRECORDED)
