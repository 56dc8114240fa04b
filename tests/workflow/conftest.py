"""One finished study for all tests here, even with several processes of pytest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import workflow_study
from workflow_study import Study, new_study

from made_once import made_once


@pytest.fixture(scope="session", autouse=True)
def all_start_warm(warm_commands: Path | None) -> Iterator[None]:
    """All studies except cold ones use commands that start warm."""
    workflow_study.WARM_COMMANDS += [str(warm_commands)] if warm_commands else []
    yield
    workflow_study.WARM_COMMANDS.clear()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Study:
    """A finished study, run with two jobs at a time. Tests that change something use a copy."""
    folder = made_once(tmp_path_factory, "study", lambda new: new_study(new, tree).make(gpu=2))
    return Study(folder, tree)
