"""Snakemake on a study's folder."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import NoReturn

from nullsae.config.read import BASE, OVERLAY, read_config, study_files
from nullsae.core.errors import UserError
from nullsae.core.home import snakefile_of

# What is given to Snakemake unless the caller's own options say it: as `make run` does.
DEFAULTS = {
    ("--cores", "-c", "--jobs", "-j", "--profile", "--executor", "-e"): ("--cores", "all"),
    ("--resources", "--res"): ("--resources", "gpu=1"),
    ("--quiet", "-q", "--verbose"): ("--quiet", "host", "reason"),
    ("--logger",): ("--logger", "nullsae"),
}


def run_study(study: Path, options: Sequence[str]) -> NoReturn:
    """Become Snakemake, so that its exit code, Ctrl-C and all signals are this process's own.

    Args:
        study: the folder that holds the config; results go there.
        options: further ones of Snakemake's, and targets.

    Raises:
        UserError: there is no study in the folder, it cannot be written to, or a file of its config
            cannot be read.
    """
    if not any((study / name).is_file() for name in (OVERLAY, BASE)):
        way = f"nullsae init {quote(str(study))} --model PATH_OR_ID"
        raise UserError(f"{study}: no {OVERLAY} here; `{way}` writes one")
    if not os.access(study, os.W_OK):
        raise UserError(f"{study}: not writable, and results go there; copy it elsewhere")
    for file in study_files(study):
        read_config(file)  # Snakemake would name it without the folder
    # The rules call `nullsae` by its name, whether or not this environment was activated.
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))
    # -P: nothing in the present folder is taken for a package.
    start = [sys.executable, "-P", "-m", "snakemake"]
    os.execv(sys.executable, [*start, *arguments(study, options)])


def arguments(study: Path, options: Sequence[str]) -> list[str]:
    """The command line of Snakemake, but for its name."""
    given = {option.partition("=")[0] for option in options}
    added = [word for names, words in DEFAULTS.items() if given.isdisjoint(names) for word in words]
    place = ["--snakefile", str(snakefile_of(study)), "--directory", str(study)]
    # Before the caller's, whose first words may be targets: these options take several values.
    return [*added, *place, *options]
