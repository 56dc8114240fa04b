"""Puts what lies at the top of the checkout into wheels; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# What a run reads beside the package; `nullsae.core.home` finds it there.
FILES = ("Snakefile", "config.yaml")
FOLDERS = ("config", "envs", "profiles", "workflow")


class BuildWithWorkflow(build_py):
    """Copies the workflow into the package, but where that is used in place."""

    def run(self) -> None:
        """Build as usual, then add the workflow."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "nullsae", "checkout")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in FILES:
            shutil.copy2(name, target)
        for name in FOLDERS:
            shutil.copytree(name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithWorkflow})
