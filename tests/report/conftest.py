"""Pages of made-up studies; each test file has its own `config`, and equal ones share a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_page import Chromium, drawing_only
from report_study import write_study

from made_once import made_once
from nullsae import paths
from nullsae.config.study import Config
from nullsae.core.files import content_key
from nullsae.report.build import build_report


@pytest.fixture(scope="module")
def built(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the study with its report; tests read it and never write there."""

    def make(root: Path) -> None:
        write_study(root, config)
        build_report(config, root)

    name = f"report-{content_key(config.model_dump(mode='json'))}"
    return made_once(tmp_path_factory, name, make)


@pytest.fixture(scope="module")
def page(built: Path) -> str:
    return (built / paths.REPORT).read_text(encoding="utf-8")


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Charts are made but not drawn, for tests that look at the rest of a page."""
    with drawing_only():
        yield


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Yield one browser for all tests of a process; without Chromium they are skipped."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on PATH")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as started:
        yield started
