"""How Snakemake was started, so that messages show commands that work for this run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nullsae.core.files import STARTED_WITH

# Where Snakemake looks by default.
SNAKEFILES = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")
PROFILES = ("--profile", "--workflow-profile")


def remember_options(workflow: Any, arguments: Sequence[str]) -> None:
    """Keep the options that identify the study in a variable that jobs inherit.

    Cluster jobs, whose inner Snakemake has other arguments, keep those of the run.

    Args:
        workflow: Snakemake's workflow object.
        arguments: the command line, for its profiles.
    """
    if workflow.is_main_process or STARTED_WITH not in os.environ:
        os.environ[STARTED_WITH] = shlex.join(_options(workflow, arguments))


def study_options(workflow: Any) -> str:
    """Return the options by which verbs for people select the study of this run.

    Args:
        workflow: Snakemake's workflow object.
    """
    found: list[str] = []
    settings = workflow.config_settings
    for file in settings.configfiles or ():
        found += ["--configfile", str(file)]
    args = settings.config_args or ()
    for pair in [args] if isinstance(args, str) else args:
        found += ["--config", pair]
    if workflow.overwrite_workdir is not None:
        found += ["--root", workflow.workdir_init]
    return shlex.join(found)


def _options(workflow: Any, arguments: Sequence[str]) -> Iterator[str]:
    start, main = Path(workflow.workdir_init), Path(workflow.main_snakefile).resolve()
    found = next((f for name in SNAKEFILES if (f := start / name).is_file()), None)
    if found is None or found.resolve() != main:
        yield from ("-s", str(main))
    if workflow.overwrite_workdir is not None:
        # Snakemake changes folder before it makes its workflow, so the command needs the option.
        yield from ("--directory", workflow.workdir_init)
    settings = workflow.config_settings
    if settings.configfiles:
        yield from ("--configfile", *map(str, settings.configfiles))
    if args := settings.config_args:
        yield from ("--config", *([args] if isinstance(args, str) else args))
    yield from _profiles(arguments)


def _profiles(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the options that name profiles, with their values."""
    taking = False
    for argument in arguments:
        name = argument.partition("=")[0]
        if argument.startswith("-"):
            taking = name in PROFILES
        if taking:
            yield argument
