from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llm_asking
import pytest
from llm_asking import N_PLAIN_PROBES, PLAIN, ask, contents, expected
from scripted_server import ScriptedServer

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.messages import Reply
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError
from refusing import refused

KEY = "sk-planted-5up3rs3cr3t"


def job(url: str, root: Path, n: int, **settings: Any) -> subprocess.Popen[str]:
    """Start a separate process with the questions of `ask` and the planted key."""
    endpoint = {"model": "m", "base_url": url, "api_key_env": "PLANTED"} | PLAIN
    settings = {"concurrency": 8, "timeout_seconds": 20.0} | settings
    arguments = [json.dumps(endpoint), json.dumps(settings), str(root), str(n)]
    path = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return subprocess.Popen(
        [sys.executable, llm_asking.__file__, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"PLANTED": KEY, "OPENAI_LOG": "debug", "PYTHONPATH": os.pathsep.join(path)},
    )


def planted_in(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if KEY.encode() in path.read_bytes()]


def error_of(url: str, root: Path, **endpoint: Any) -> str:
    return refused(ask, url, 2, root, endpoint=PLAIN | endpoint)


def test_a_missing_key_is_named_and_local_addresses_need_none(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    message = error_of("https://api.example.org/v1", tmp_path, api_key_env="NO_SUCH_KEY")
    assert "api_key_env: the environment variable NO_SUCH_KEY is not set" in message
    replies, _ = ask(server.url, 1, tmp_path, endpoint=PLAIN | {"api_key_env": "NO_SUCH_KEY"})
    assert contents(replies) == [expected(0)]
    assert server.stats()["authorization"] == {"none": 1 + N_PLAIN_PROBES}


def test_a_key_that_no_header_can_contain_is_refused_without_showing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_KEY", "sk-a b\nc")
    message = error_of("https://api.example.org/v1", tmp_path, api_key_env="ODD_KEY")
    assert "ODD_KEY does not hold a key" in message
    assert "sk-" not in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"models": ["other"]}, "model: .* does not know 'm' .*404: The model `m` does not exist"),
        ({"max_characters": 10}, "windows_per_prompt, shown_windows: .*maximum context length"),
        ({"refused_fields": ["messages"]}, "refuses a request .*400: Unsupported parameter"),
        ({"key": "right"}, "api_key_env: .* wants a key, but none was sent"),
    ],
)
def test_permanent_failures_are_one_line(
    server: ScriptedServer, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    server.set(**options)
    with pytest.raises(UserError, match=said):
        ask(server.url, 2, tmp_path)
    assert server.stats()["requests"] == 1


def test_an_address_where_nothing_answers_is_reported_at_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.monotonic()
    message = error_of(f"http://127.0.0.1:{port}/v1", tmp_path)
    assert f"base_url: nothing answers at http://127.0.0.1:{port}/v1" in message
    message = error_of("http://no-such-host.invalid/v1", tmp_path, api_key_env=None)
    assert "base_url: the host of http://no-such-host.invalid/v1 is unknown" in message
    assert time.monotonic() - started < 20


def test_a_wrong_path_is_reported(server: ScriptedServer, tmp_path: Path) -> None:
    assert "no chat endpoint at" in error_of(server.root, tmp_path)


def test_an_untrusted_certificate_is_reported_with_the_variable_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "server.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            *subject,
            "-keyout",
            str(tmp_path / "key.pem"),
            "-out",
            str(tmp_path / "cert.pem"),
        ],
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr
    pem.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    with ScriptedServer(certificate=str(pem)) as server:
        url = f"https://localhost:{server.port}/v1"
        message = error_of(url, tmp_path)
        assert "base_url: no trusted connection" in message
        assert "SSL_CERT_FILE" in message
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        replies, _ = ask(url, 1, tmp_path)
        assert contents(replies) == [expected(0)]


def test_a_planted_key_is_in_no_file_log_message_or_process_list(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(latency_seconds=0.3, key=KEY)
    good = job(server.url, tmp_path / "good", 20)
    while server.stats()["answered"] < 4:
        assert good.poll() is None
        time.sleep(0.05)
    listed = b"".join(
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.parent.name != str(os.getpid()) and path.exists()
    )
    assert b"llm_asking" in listed
    assert KEY.encode() not in listed
    out, log = good.communicate(timeout=60)
    assert good.returncode == 0, log
    assert KEY not in out + log
    # An answer that repeats the key is blanked as well.
    server.set(latency_seconds=0.0, key="another", answers="detection")
    bad = job(server.url, tmp_path / "bad", 3)
    out, log = bad.communicate(timeout=60)
    assert bad.returncode == 1
    assert "Incorrect API key provided: ***" in log
    assert "Traceback" in log
    assert "PLANTED" in log
    assert KEY not in out + log
    assert planted_in(tmp_path) == []
    assert server.stats()["authorization"] == {"sent": server.stats()["requests"]}


def test_a_killed_run_resumes_and_repeats_no_answered_request(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(latency_seconds=1.0)
    killed = job(server.url, tmp_path, 24)
    while server.stats()["answered"] < N_PLAIN_PROBES + 8:
        assert killed.poll() is None
        time.sleep(0.02)
    # The next eight have been sent and are answered within a second.
    time.sleep(0.4)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    while server.stats()["in_flight"]:
        time.sleep(0.02)
    n_answered = server.stats()["answered"]
    assert N_PLAIN_PROBES + 8 <= n_answered < N_PLAIN_PROBES + 24
    server.set(latency_seconds=0.0)
    replies, usage = ask(server.url, 24, tmp_path)
    assert contents(replies) == [expected(i) for i in range(24)]
    assert usage.cached_calls == n_answered - N_PLAIN_PROBES
    assert server.stats()["repeated_answered"] == 0


def test_two_processes_share_one_cache(server: ScriptedServer, tmp_path: Path) -> None:
    server.set(latency_seconds=0.02)
    jobs = [job(server.url, tmp_path, n) for n in (60, 40)]
    told = [json.loads(one.communicate(timeout=60)[0].rpartition(" ")[0]) for one in jobs]
    assert told == [[expected(i) for i in range(n)] for n in (60, 40)]
    cache = ReplyCache(tmp_path / Llm().cache)
    assert cache.count() == 60 + N_PLAIN_PROBES
    cache.close()
    again: list[Reply | None]
    again, usage = ask(server.url, 60, tmp_path)
    assert contents(again) == [expected(i) for i in range(60)]
    assert usage.calls == 0
