from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llm_asking
import pytest
import scripted_server
from llm_asking import N_PLAIN_PROBES, PLAIN, ask, contents, expected

from nullsae.autointerp.llm.client import LanguageModel, ask_all
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError


def settings(tmp_path: Path, *, ready_seconds: float = 60.0, **options: Any) -> dict[str, Any]:
    options = {"child": True, "pids": str(tmp_path / "pids")} | options
    program = [sys.executable, scripted_server.__file__, "--port", "{port}"]
    command = (*program, json.dumps(options))
    return PLAIN | {
        "model": "m",
        "base_url": None,
        "server": {"command": command, "ready_seconds": ready_seconds},
    }


def pids(tmp_path: Path) -> list[int]:
    """Return the process ids of the server and its child, once they run."""
    path = tmp_path / "pids"
    deadline = time.monotonic() + 60
    while not (path.is_file() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(word) for word in path.read_text().split()]


def running(pid: int) -> bool:
    """Return whether a process runs; an unreaped one does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def all_end(found: list[int], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(running(pid) for pid in found):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_server_is_started_used_and_stopped_with_its_children(tmp_path: Path) -> None:
    replies, usage = ask("", 5, tmp_path, endpoint=settings(tmp_path, ready_after_seconds=0.5))
    assert contents(replies) == [expected(i) for i in range(5)]
    assert all_end(pids(tmp_path), 0.5)
    (tmp_path / "pids").unlink()
    again, cached = ask("", 5, tmp_path, endpoint=settings(tmp_path, ready_after_seconds=0.5))
    assert again == replies
    assert (usage.calls, cached.calls) == (5 + N_PLAIN_PROBES, 0)
    # Nothing was asked, so nothing was started.
    assert not (tmp_path / "pids").exists()


def test_a_server_is_stopped_after_an_error_of_the_caller(tmp_path: Path) -> None:
    async def broken(model: LanguageModel) -> None:
        await model.ask(llm_asking.question(0))
        assert all(running(pid) for pid in pids(tmp_path))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask_all(Endpoint(**settings(tmp_path)), Llm(), lambda m: [broken(m)], root=tmp_path)
    assert all_end(pids(tmp_path), 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_its_job_however_that_ends(tmp_path: Path, kind: signal.Signals) -> None:
    endpoint = settings(tmp_path, latency_seconds=20.0)
    arguments = [json.dumps(endpoint), "{}", str(tmp_path), "4"]
    job = subprocess.Popen(
        [sys.executable, llm_asking.__file__, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        # The parent of the tests may ignore it: `nohup`, a shell's background job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    found = pids(tmp_path)
    assert len(found) == 2
    assert all(running(pid) for pid in found)
    job.send_signal(kind)
    job.communicate(timeout=60)
    assert all_end(found)


def test_a_missing_or_failing_server_is_one_line(tmp_path: Path) -> None:
    missing = settings(tmp_path) | {"server": {"command": ("no-such-program", "{port}")}}
    with pytest.raises(UserError, match=r"server\.command: no program 'no-such-program'"):
        ask("", 1, tmp_path, endpoint=missing)
    with pytest.raises(UserError, match=r"ended with 3 .*\(the model file is missing\)"):
        ask("", 1, tmp_path, endpoint=settings(tmp_path, exit_status=3))
    slow = settings(tmp_path, ready_seconds=2.5, ready_after_seconds=100.0)
    with pytest.raises(UserError, match=r"server\.ready_seconds: .* within 2\.5 s"):
        ask("", 1, tmp_path, endpoint=slow)
    if (tmp_path / "pids").exists():
        assert all_end(pids(tmp_path), 0.5)


def test_a_server_that_ends_early_is_reported_at_once(tmp_path: Path) -> None:
    async def kill_then_ask(model: LanguageModel) -> None:
        await model.ask(llm_asking.question(0))
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        await model.ask(llm_asking.question(1))

    with pytest.raises(UserError, match=r"server\.command: .* ended while it was in use"):
        ask_all(Endpoint(**settings(tmp_path)), Llm(), lambda m: [kill_then_ask(m)], root=tmp_path)
    assert all_end(pids(tmp_path))
