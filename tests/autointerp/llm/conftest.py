from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The tests of judges one folder up use the scripted server as well.
sys.path.insert(0, str(Path(__file__).parents[1]))

from llm_asking import ask
from scripted_server import Options, ScriptedServer


@pytest.fixture
def server(process: ScriptedServer) -> ScriptedServer:
    process.set(**vars(Options()))
    process.reset()
    return process


@pytest.fixture
def known(process: ScriptedServer, tmp_path: Path) -> ScriptedServer:
    """A server whose abilities have been probed already."""
    process.set(**vars(Options()))
    ask(process.url, [99], tmp_path)
    process.reset()
    return process
