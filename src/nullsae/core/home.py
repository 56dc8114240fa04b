"""The folder with the Snakefile and all that it needs, and a user's caches."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# In an installed package: a copy of what lies at the top of a checkout (setup.py).
INSTALLED = PACKAGE / "checkout"


def workflow_folder() -> Path:
    """The folder of Snakefile, config.yaml, config/, workflow/, profiles/ and envs/.

    That is the top of the checkout that the package is imported from, or its copy inside an
    installed package.
    """
    return INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]


def snakefile_of(root: Path) -> Path:
    """The Snakefile of a study's folder, else the one that nullsae comes with."""
    own = root / "Snakefile"
    return (own if own.is_file() else workflow_folder() / "Snakefile").resolve()


def place_of(root: Path) -> tuple[str, ...]:
    """The options with which Snakemake finds a study's folder from any other one."""
    return "-s", str(snakefile_of(root)), "--directory", str(root.absolute())


def cache_folder() -> Path:
    """Where the user's programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
