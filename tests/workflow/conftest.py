"""One finished study for all tests here, and one more that runs beside them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm_start
import workflow_study
from workflow_study import ONE_THREAD, TIMEOUT_SECONDS, Study, freeze, new_study


@pytest.fixture(scope="session", autouse=True)
def warm_commands(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Iterator[None]:
    """Commands that start warm, for all studies that are not cold."""
    if not hasattr(os, "pidfd_open"):  # no Linux
        yield
        return
    folder = tmp_path_factory.mktemp("warm")
    with warm_start.start(folder, os.environ | ONE_THREAD, tree / "src") as server:
        workflow_study.WARM_COMMANDS.append(str(folder))
        yield
        workflow_study.WARM_COMMANDS.clear()
        server.communicate()


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, frozen."""
    return freeze(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def study(
    tmp_path_factory: pytest.TempPathFactory, tree: Path, request: pytest.FixtureRequest
) -> Study:
    """A finished study, its jobs run two at a time. Tests that change something take a copy."""
    made = new_study(tmp_path_factory.mktemp("study") / "study", tree, cold=True)
    made.make(gpu=2)
    study = Study(made.folder, tree)
    if any("serial_run" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("serial_run")
    return study


@pytest.fixture(scope="session")
def serial_run(
    tmp_path_factory: pytest.TempPathFactory, tree: Path
) -> Iterator[tuple[Study, subprocess.Popen[bytes]]]:
    """The same study on one core, in another folder; it runs while other tests do."""
    serial = new_study(tmp_path_factory.mktemp("serial") / "study", tree)
    with open(serial.folder / "run.log", "wb") as log:
        process = subprocess.Popen(
            serial.command(cores=1),
            cwd=serial.folder,
            env=serial.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield serial, process
    if process.poll() is None:
        process.terminate()
        process.wait(TIMEOUT_SECONDS)
