"""The page of a made-up study; each test file has its own `config`."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_study import write_study

from nullsae import paths
from nullsae.config.study import Config
from nullsae.report.build import build_report


@pytest.fixture(scope="module")
def built(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the study with its report."""
    root = tmp_path_factory.mktemp("study")
    write_study(root, config)
    build_report(config, root)
    return root


@pytest.fixture(scope="module")
def page(built: Path) -> str:
    return (built / paths.REPORT).read_text(encoding="utf-8")
