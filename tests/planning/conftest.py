from __future__ import annotations

from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[2] / "config.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the default study's config."""
    (tmp_path / "config.yaml").write_text(DEFAULT.read_text())
    return tmp_path
