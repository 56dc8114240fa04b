from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asked_latents import N_WINDOWS, WORDS, Rows, text_window
from autointerp_cells import byte_tokenizer
from scripted_server import Options, ScriptedServer
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> Rows:
    """Three latents, each with active windows that contain its word, and as many silent ones."""
    found = []
    for latent, word in enumerate(WORDS):
        for pool in ("explain", "score"):
            for i in range(2 * N_WINDOWS):
                index = latent * 1000 + i + 500 * (pool == "score")
                row = text_window(tokenizer, latent, index, word if i % 2 else None, pool)
                found.append({**row, "quantile": i % 3 if i % 2 else None})
    return found


@pytest.fixture(scope="module")
def process() -> Iterator[ScriptedServer]:
    """Yield one server for a file of tests, which set its options."""
    with ScriptedServer() as process:
        yield process


@pytest.fixture
def server(process: ScriptedServer) -> ScriptedServer:
    """Return a server with plausible judgements."""
    process.set(**vars(Options(answers="judge_answers:plausible")))
    process.reset()
    return process
