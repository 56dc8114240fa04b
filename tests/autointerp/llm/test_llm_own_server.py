"""A job's own server: nobody can impersonate it, and nobody else can ask it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llm_asking
import psutil
import pytest
import scripted_server
from llm_asking import PLAIN, ask, contents, expected

from nullsae.autointerp.llm.client import LanguageModel, ask_all
from nullsae.autointerp.llm.ports import listeners
from nullsae.autointerp.llm.server import KEY_VARIABLES
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

# Writes the port that it was given, but never listens there.
SILENT = "import sys, time; open(sys.argv[2], 'w').write(sys.argv[1]); time.sleep(600)"


def endpoint(*command: str, **keys: Any) -> dict[str, Any]:
    return PLAIN | {
        **{"model": "m", "base_url": None},
        "server": {"command": command, "ready_seconds": 60.0} | keys,
    }


def scripted(**options: Any) -> tuple[str, ...]:
    return (sys.executable, scripted_server.__file__, "--port", "{port}", json.dumps(options))


class Stranger(threading.Thread):
    """Listens at a port as soon as possible, and keeps what it receives."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        super().__init__(daemon=True)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.where, self.got = (address, port), b""
        self.start()

    def run(self) -> None:
        while True:
            try:
                self.socket.bind(self.where)
                break
            except OSError:
                time.sleep(0.005)
        self.socket.listen(64)
        while True:
            connection, _ = self.socket.accept()
            connection.settimeout(1.0)
            try:
                while piece := connection.recv(4096):
                    self.got += piece
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            except OSError:
                pass


@contextmanager
def stranger_first(tmp_path: Path, address: str) -> Iterator[list[Stranger]]:
    """Take the port of a server that only writes it down."""
    found: list[Stranger] = []

    def take() -> None:
        file = tmp_path / "port"
        while not (file.is_file() and file.read_text()):
            time.sleep(0.01)
        found.append(Stranger(int(file.read_text()), address))

    threading.Thread(target=take, daemon=True).start()
    yield found


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_stranger_that_takes_the_port_first_is_sent_nothing(tmp_path: Path, address: str) -> None:
    command = (sys.executable, "-c", SILENT, "{port}", str(tmp_path / "port"))
    with (
        stranger_first(tmp_path, address) as strangers,
        pytest.raises(UserError, match=r"^server\.command: process \d+ listens at port \d+, which"),
    ):
        ask("", 1, tmp_path, endpoint=endpoint(*command))
    assert strangers[0].got == b""


def test_a_stranger_on_the_port_of_a_dead_server_is_sent_nothing(tmp_path: Path) -> None:
    strangers = []

    async def kill_then_ask(model: LanguageModel) -> None:
        await model.ask(llm_asking.question(0))
        server = int((tmp_path / "pids").read_text().split()[0])
        [own] = [c for c in psutil.Process(server).net_connections() if c.status == "LISTEN"]
        strangers.append(Stranger(own.laddr.port))
        os.kill(server, signal.SIGKILL)
        await model.ask(llm_asking.question(1))

    settings = endpoint(*scripted(pids=str(tmp_path / "pids")))
    with pytest.raises(UserError, match=r"server\.command: .*(ended while|listens at port)"):
        ask_all(Endpoint(**settings), Llm(), lambda m: [kill_then_ask(m)], root=tmp_path)
    assert strangers[0].got == b""


@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_a_server_finds_the_key_of_the_run_in_its_environment(
    tmp_path: Path, variable: str
) -> None:
    settings = endpoint(*scripted(key_variable=variable))
    replies, usage = ask("", 2, tmp_path, endpoint=settings)
    assert contents(replies) == [expected(0), expected(1)]
    assert usage.failed == 0


def test_the_key_of_a_run_is_shown_to_nobody(tmp_path: Path) -> None:
    seen = {}

    async def look(model: LanguageModel) -> None:
        await model.ask(llm_asking.question(0))
        server = psutil.Process(int((tmp_path / "pids").read_text().split()[0]))
        seen["key"] = server.environ()["LLAMA_API_KEY"]
        [own] = [c for c in server.net_connections() if c.status == "LISTEN"]
        seen["lines"] = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
        request = urllib.request.Request(
            f"http://127.0.0.1:{own.laddr.port}/v1/chat/completions", b"{}"
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=30)

    options = {"pids": str(tmp_path / "pids"), "key_variable": "LLAMA_API_KEY"}
    for _ in range(2):
        settings = Endpoint(**endpoint(*scripted(**options)))
        ask_all(settings, Llm(cache=f"{len(seen)}.sqlite"), lambda m: [look(m)], root=tmp_path)
        key, before = seen["key"], seen.get("before")
        assert len(key) >= 32
        assert key != before
        assert not any(key in str(line) for line in seen["lines"])
        assert not any(key.encode() in f.read_bytes() for f in tmp_path.iterdir() if f.is_file())
        seen["before"] = key


def test_the_last_line_of_a_server_does_not_show_its_key(tmp_path: Path) -> None:
    telltale = "import os, sys; sys.exit('my key is ' + os.environ['VLLM_API_KEY'])"
    with pytest.raises(UserError, match=r"ended with 1 .*\(my key is \*\*\*\)$"):
        ask("", 1, tmp_path, endpoint=endpoint(sys.executable, "-c", telltale, "{port}"))


def test_a_key_named_in_the_config_is_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "a-key-of-my-own")
    settings = endpoint(*scripted(key="a-key-of-my-own", key_variable="LLAMA_API_KEY"))
    replies, _ = ask("", 1, tmp_path, endpoint=settings | {"api_key_env": "MINE"})
    assert contents(replies) == [expected(0)]


WRAPPERS = {
    "a shell's child": ("sh", "-c", '"$0" "$@"; true'),
    "left by its parent": (
        *(sys.executable, "-c"),
        "import os, subprocess, sys, time\n"
        "subprocess.Popen(['sh', '-c', '\"$0\" \"$@\" &', *sys.argv[1:]]).wait(); time.sleep(600)",
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=[*WRAPPERS])
def test_any_process_that_the_command_starts_may_be_the_server(
    tmp_path: Path, wrapper: tuple[str, ...]
) -> None:
    replies, _ = ask("", 1, tmp_path, endpoint=endpoint(*wrapper, *scripted()))
    assert contents(replies) == [expected(0)]


def test_a_server_that_would_outlive_the_job_is_not_asked(tmp_path: Path) -> None:
    """Its command is stopped with its process group, which this server leaves."""
    leaves = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True).wait()"
    command = (sys.executable, "-c", leaves, *scripted(pids=str(tmp_path / "pids")))
    try:
        with pytest.raises(UserError, match=r"process \d+ listens at port \d+"):
            ask("", 1, tmp_path, endpoint=endpoint(*command))
    finally:
        os.kill(int((tmp_path / "pids").read_text().split()[0]), signal.SIGKILL)


def test_a_server_that_others_can_reach_gets_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_to_all = (
        "import http.server, sys\n"
        "class Hello(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "http.server.HTTPServer(('0.0.0.0', int(sys.argv[1])), Hello).serve_forever()"
    )
    with pytest.raises(UserError, match="refuses a request"):
        ask("", 1, tmp_path, endpoint=endpoint(sys.executable, "-c", open_to_all, "{port}"))
    [said] = [r.getMessage() for r in caplog.records if "0.0.0.0" in r.getMessage()]
    assert "have it listen at 127.0.0.1" in said


def test_listeners_are_distinguished_by_their_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        other = subprocess.Popen(["sleep", "60"], start_new_session=True)
        try:
            assert listeners(port, os.getpgid(0)).own == ("127.0.0.1",)
            assert listeners(port, os.getpgid(0)).foreign == ()
            assert listeners(port, other.pid).own == ()
            assert listeners(port, other.pid).foreign == (f"process {os.getpid()}",)
        finally:
            other.kill()
            other.wait()
    assert listeners(port, os.getpgid(0)).own == ()
