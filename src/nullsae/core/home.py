"""The folder with the Snakefile and everything it needs, and the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# In an installed package: a copy of the top of a checkout, made by setup.py.
INSTALLED = PACKAGE / "checkout"


def workflow_folder() -> Path:
    """Return the folder with Snakefile, config.yaml, config/, workflow/, profiles/ and envs/.

    It is the top of the checkout from which the package is imported, or its copy inside an
    installed package.
    """
    return INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]


def snakefile_of(root: Path) -> Path:
    """Return the Snakefile in a study's folder, or else the one that comes with nullsae."""
    own = root / "Snakefile"
    return (own if own.is_file() else workflow_folder() / "Snakefile").resolve()


def place_of(root: Path) -> tuple[str, ...]:
    """Return the options with which Snakemake finds a study's folder from anywhere."""
    return "-s", str(snakefile_of(root)), "--directory", str(root.absolute())


def cache_folder() -> Path:
    """Return the folder where the user's programs keep what they can recreate."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
