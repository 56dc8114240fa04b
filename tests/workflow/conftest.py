"""One finished study for all tests here, even with several processes of pytest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm_start
import workflow_study
from workflow_study import ONE_THREAD, Study, freeze, new_study

from made_once import made_once


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, frozen."""
    return made_once(tmp_path_factory, "tree", freeze)


@pytest.fixture(scope="session", autouse=True)
def warm_commands(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Iterator[None]:
    """Commands that start warm, for all studies except cold ones."""
    if not hasattr(os, "pidfd_open"):  # not Linux
        yield
        return
    folder = tmp_path_factory.mktemp("warm")
    with warm_start.start(folder, os.environ | ONE_THREAD, tree / "src") as server:
        workflow_study.WARM_COMMANDS.append(str(folder))
        yield
        workflow_study.WARM_COMMANDS.clear()
        server.communicate()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Study:
    """A finished study, run with two jobs at a time. Tests that change something use a copy."""
    folder = made_once(tmp_path_factory, "study", lambda new: new_study(new, tree).make(gpu=2))
    return Study(folder, tree)
