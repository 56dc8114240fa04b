"""Other packages, which have a Python of their own: `make .venv-peers/installed`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[1] / ".venv-peers"
QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def need_peers(packages: str) -> None:
    """Skip a test of these packages, which the message names, where they are not installed."""
    if not (PEERS / "installed").is_file():
        pytest.skip(f"{packages}: not installed: make .venv-peers/installed")


def run_with_peers(script: Path, *arguments: object, **environment: str) -> None:
    """Run a script with the Python that has the packages, and insist that it succeeds."""
    found = subprocess.run(
        [PEERS / "bin" / "python", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **QUIET, **environment},
    )
    assert found.returncode == 0, found.stderr
