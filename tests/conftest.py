"""Fixtures that several folders share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from made_once import made_once

if TYPE_CHECKING:
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
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, frozen."""
    from workflow_study import freeze

    return made_once(tmp_path_factory, "tree", freeze)


@pytest.fixture(scope="session")
def warm_commands(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path | None:
    """The folder of commands that start warm (`warm_start.py`), where the system can do it."""
    from warm_start import ONE_THREAD, start

    if not hasattr(os, "pidfd_open"):  # not Linux
        return None
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()

    def make(folder: Path) -> None:
        folder.mkdir()
        start(folder, os.environ | ONE_THREAD, session, tree / "src")

    return made_once(tmp_path_factory, "warm", make)


@pytest.fixture(scope="module")
def warm(warm_commands: Path | None) -> Iterator[None]:
    """Start `sys.executable`, `nullsae` and `snakemake` warm, whoever starts them."""
    from warm_start import ONE_THREAD

    with pytest.MonkeyPatch.context() as patch:
        if warm_commands is not None:
            for variable, value in ONE_THREAD.items():
                patch.setenv(variable, value)
            patch.setenv("PATH", str(warm_commands), prepend=os.pathsep)
            patch.setattr(sys, "executable", str(warm_commands / "python"))
        yield


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
