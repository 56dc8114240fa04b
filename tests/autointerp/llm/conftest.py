from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The scripted server serves the judges' tests too, which lie one folder up.
sys.path.insert(0, str(Path(__file__).parents[1]))

from scripted_server import Options, ScriptedServer


@pytest.fixture(scope="module")
def process() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def server(process: ScriptedServer) -> ScriptedServer:
    process.set(**vars(Options()))
    process.reset()
    return process
