"""`nullsae run`: run Snakemake on a study's folder."""

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

# Defaults for Snakemake's options, as in `make run`, unless the caller gives one of the names.
DEFAULTS = {
    ("--cores", "-c", "--jobs", "-j", "--profile", "--executor", "-e"): ("--cores", "all"),
    ("--resources", "--res"): ("--resources", "gpu=1"),
    ("--quiet", "-q", "--verbose"): ("--quiet", "host", "reason"),
    ("--logger",): ("--logger", "nullsae"),
}


def run_study(study: Path, options: Sequence[str]) -> NoReturn:
    """Replace this process by Snakemake, which then gets Ctrl-C and signals, and exits for it.

    Args:
        study: the folder with the config; results go there.
        options: further options of Snakemake, and targets.

    Raises:
        UserError: the folder has no study, is not writable, or its config cannot be read.
    """
    files = study_files(study)
    if not any((study / name).is_file() for name in (OVERLAY, BASE)):
        way = f"nullsae init {quote(str(study))} --model PATH_OR_ID"
        raise UserError(f"{study}: no {OVERLAY} here; `{way}` writes one")
    if not os.access(study, os.W_OK):
        raise UserError(f"{study}: not writable, but results go there; copy it elsewhere")
    for file in files:
        read_config(file)  # Snakemake would name it without the folder
    # Rules call `nullsae` by name, but this environment may not be activated.
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))
    # -P: import nothing from the current folder.
    start = [sys.executable, "-P", "-m", "snakemake"]
    os.execv(sys.executable, [*start, *arguments(study, options)])


def arguments(study: Path, options: Sequence[str]) -> list[str]:
    """Return Snakemake's arguments."""
    given = {option.partition("=")[0] for option in options}
    added = [word for names, words in DEFAULTS.items() if given.isdisjoint(names) for word in words]
    place = ["--snakefile", str(snakefile_of(study)), "--directory", str(study)]
    # Ours come first: some take several values, and the caller's first words may be targets.
    return [*added, *place, *options]
