"""Fixtures that several folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_chain import Chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A tiny study up to its activations; tests read it and never write there."""
    from small_chain import build_chain

    return build_chain(tmp_path_factory.mktemp("chain"))
