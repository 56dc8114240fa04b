"""Fixtures that several folders share."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from small_chain import Chain


# As in `nullsae.cli.main`: libraries and tests make millions of objects that stay.
gc.set_threshold(200_000)


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole studies first: what takes long must not begin last, where processes share the tests."""
    for item in items:
        if item.get_closest_marker("weekly"):
            item.add_marker("slow")
    items.sort(key=lambda item: "workflow" not in item.path.parts)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A tiny study up to its activations; tests read it and never write there."""
    from small_chain import build_chain

    return build_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def tiny_sae(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cfg.json` of an untrained SAE for the chain's `resid_post.1`."""
    from small_chain import save_tiny_sae

    return save_tiny_sae(chain, tmp_path_factory.mktemp("sae"))


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a file; tests read it and never write there."""
    from tiny_gguf import write_tiny_gguf

    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(file)
    return file
