"""The folder with the Snakefile and all that it needs."""

from __future__ import annotations

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
