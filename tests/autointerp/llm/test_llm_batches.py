"""`llm.batch`: the batch API of an endpoint that has one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llm_asking
import pytest
from llm_asking import PLAIN, ask, contents, expected, question
from scripted_server import ScriptedServer

from nullsae import paths
from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.config.llm import Llm, Price
from nullsae.core.errors import UserError

pytestmark = pytest.mark.usefixtures("warm")

N = 20
PRICES = {"m": Price(input_usd_per_million_tokens=100.0, output_usd_per_million_tokens=1000.0)}
BATCH: dict[str, Any] = {"batch": True, "batch_poll_seconds": 0.05}


def spent(root: Path) -> float:
    cache = ReplyCache(root / Llm().cache)
    usd = cache.total_cost_usd()
    # Nothing is reserved any more.
    assert cache.reserve(1.0, usd + 1.0) is None
    cache.close()
    return usd


def left(root: Path) -> list[Path]:
    return [*(root / paths.BATCHES).iterdir()]


def end(i: int) -> str:
    """Return the end of the last message of question i."""
    return question(i).messages[-1]["content"].splitlines()[-1]


def job(url: str, root: Path, n: int, **settings: Any) -> subprocess.Popen[str]:
    """Start a separate process with the same questions, which prints its log."""
    endpoint = json.dumps({"model": "m", "base_url": url} | PLAIN)
    path = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return subprocess.Popen(
        [sys.executable, llm_asking.__file__, endpoint, json.dumps(settings), str(root), str(n)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
    )


def test_questions_go_into_one_batch_at_half_the_price(
    server: ScriptedServer, tmp_path: Path
) -> None:
    replies, usage = ask(server.url, N, tmp_path / "batch", prices=PRICES, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    stats = server.stats()
    assert (stats["batches"], stats["batch_lines"]) == (1, N)
    # Uploaded and resulting files are deleted.
    assert stats["files_left"] == 0
    whole, at_once = ask(server.url, N, tmp_path / "at_once", prices=PRICES)
    assert whole == replies
    # Probes are sent immediately, at the full price.
    _, probes = ask(server.url, [0], tmp_path / "one", prices=PRICES)
    _, one = ask(server.url, [0, 1], tmp_path / "one", prices=PRICES)
    of_probes = probes.cost_usd - one.cost_usd
    assert usage.cost_usd - of_probes == pytest.approx((at_once.cost_usd - of_probes) / 2, rel=0.02)
    assert spent(tmp_path / "batch") == pytest.approx(usage.cost_usd)
    assert left(tmp_path / "batch") == []
    again, cached = ask(server.url, N, tmp_path / "batch", **BATCH)
    assert (again, cached.calls) == (replies, 0)


def test_truncated_answers_go_into_a_second_batch(server: ScriptedServer, tmp_path: Path) -> None:
    server.set(reasoning_tokens=200)
    replies, _ = ask(server.url, N, tmp_path, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    assert (server.stats()["batches"], server.stats()["batch_lines"]) == (2, 2 * N)


def test_a_batch_holds_no_more_requests_than_allowed(
    server: ScriptedServer, tmp_path: Path
) -> None:
    replies, _ = ask(server.url, N, tmp_path, max_requests_per_batch=8, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    assert (server.stats()["batches"], server.stats()["batch_lines"]) == (3, N)


def test_a_killed_job_finds_its_batch_again_and_pays_nothing_twice(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(batch_seconds=1.5)
    settings = BATCH | {"max_cost_usd": 9.0}
    prices = {"m": PRICES["m"].model_dump()}
    killed = job(server.url, tmp_path, N, prices=prices, **settings)
    while not server.stats()["batches"] or not any(
        "batch-" in p.read_text() for p in left(tmp_path)
    ):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    replies, usage = ask(server.url, N + 5, tmp_path, prices=PRICES, **settings)
    assert contents(replies) == [expected(i) for i in range(N + 5)]
    stats = server.stats()
    # The second batch has only the requests that the first one lacked.
    assert (stats["batches"], stats["batch_lines"], stats["batch_repeated"]) == (2, N + 5, 0)
    assert usage.calls == N + 5
    assert left(tmp_path) == []
    assert spent(tmp_path) > usage.cost_usd


@pytest.mark.parametrize("trouble", ["batch_drops", "batch_busy"])
def test_a_batch_created_without_a_response_is_not_created_again(
    server: ScriptedServer, tmp_path: Path, trouble: str
) -> None:
    server.set(**{trouble: 1})
    replies, _ = ask(server.url, 5, tmp_path, **BATCH)
    assert contents(replies) == [expected(i) for i in range(5)]
    assert (server.stats()["batches"], server.stats()["batch_repeated"]) == (1, 0)


def test_a_job_killed_before_it_knew_its_batch_finds_it_by_name(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(batch_seconds=0.5)
    killed = job(server.url, tmp_path, N, **BATCH)
    while not server.stats()["batches"] or not any(
        "batch-" in p.read_text() for p in left(tmp_path)
    ):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    [file] = [path for path in left(tmp_path) if path.suffix == ".json"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"batch": None}))
    replies, _ = ask(server.url, N, tmp_path, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    assert (server.stats()["batches"], server.stats()["batch_repeated"]) == (1, 0)


def test_two_jobs_with_the_same_questions_share_a_batch(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(batch_seconds=1.5)
    ask(server.url, [99], tmp_path)
    first = job(server.url, tmp_path, N, **BATCH)
    while not server.stats()["batches"]:
        time.sleep(0.02)
    replies, usage = ask(server.url, N, tmp_path, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    assert json.loads(first.communicate()[0].rpartition(" ")[0]) == contents(replies)
    assert (server.stats()["batches"], usage.calls, usage.cached_calls) == (1, 0, N)


@pytest.mark.parametrize(
    ("status", "message"), [(429, "slow down"), (500, "oops"), (503, "overloaded")]
)
def test_failed_lines_are_requested_again_and_the_others_are_kept(
    server: ScriptedServer, tmp_path: Path, status: int, message: str
) -> None:
    server.set(batch_lines={end(i): [status, message] for i in (3, 7)})
    replies, usage = ask(server.url, N, tmp_path, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    stats = server.stats()
    assert (stats["batches"], stats["batch_lines"], stats["batch_repeated"]) == (2, N, 0)
    assert (usage.attempts_failed, usage.failed) == (2, 0)


def test_a_refused_line_ends_the_job_and_the_others_are_kept(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(batch_lines={end(3): [400, "maximum context length is 9"]})
    with pytest.raises(UserError, match="windows_per_prompt, shown_windows: "):
        ask(server.url, N, tmp_path, **BATCH)
    replies, _ = ask(server.url, N, tmp_path, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    stats = server.stats()
    assert (stats["batches"], stats["batch_lines"], stats["batch_repeated"]) == (2, N, 0)


def test_replies_of_an_expired_batch_are_kept_and_the_rest_requested_again(
    server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.set(batch_outcome="expired", batch_spared=15)
    with caplog.at_level(logging.INFO):
        replies, usage = ask(server.url, N, tmp_path, prices=PRICES, max_cost_usd=9.0, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    stats = server.stats()
    assert (stats["batches"], stats["batch_lines"], stats["batch_repeated"]) == (2, N, 0)
    assert "batch batch-0 expired: 15 replies" in caplog.text
    assert spent(tmp_path) == pytest.approx(usage.cost_usd)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("failed", r"batch-0 failed \(token_limit_exceeded: Enqueued .*max_requests_per_batch"),
        ("cancelled", "batch-0 cancelled .*run again to ask for the rest"),
    ],
)
def test_a_failed_batch_is_reported_in_one_line(
    server: ScriptedServer, tmp_path: Path, outcome: str, said: str
) -> None:
    server.set(batch_outcome=outcome, batch_spared=4)
    with pytest.raises(UserError, match=rf"llm\.batch: m at http.*{said}") as caught:
        ask(server.url, N, tmp_path, prices=PRICES, max_cost_usd=9.0, **BATCH)
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []
    spent(tmp_path)
    server.set(batch_outcome="completed")
    replies, usage = ask(server.url, N, tmp_path, **BATCH)
    assert contents(replies) == [expected(i) for i in range(N)]
    assert usage.cached_calls == (4 if outcome == "cancelled" else 0)


def test_batches_without_a_reply_end_the_job(server: ScriptedServer, tmp_path: Path) -> None:
    server.set(batch_outcome="expired")
    with pytest.raises(UserError, match=r"3 batches in a row brought no reply, .* in time"):
        ask(server.url, N, tmp_path, **BATCH)
    assert server.stats()["batches"] == 3


def test_an_endpoint_without_batches_is_reported_in_one_line(
    server: ScriptedServer, tmp_path: Path
) -> None:
    url = f"{server.root}/openai/deployments/gpt"
    with pytest.raises(
        UserError, match=r"llm\.batch: m at .*no batch interface .*llm\.batch: false"
    ):
        ask(url, 3, tmp_path, **BATCH)
    assert left(tmp_path) == []


def test_batches_cost_no_more_than_the_limit(server: ScriptedServer, tmp_path: Path) -> None:
    limit = BATCH | {"prices": PRICES, "max_cost_usd": 0.7}
    # At most half of 0.14 USD for each; in the end about a tenth of that.
    with pytest.raises(UserError, match=r"llm\.max_cost_usd: .* of 0\.7 USD are spent"):
        ask(server.url, 200, tmp_path, **limit)
    assert 0.7 - 0.07 < spent(tmp_path) <= 0.7
    assert server.stats()["batches"] > 1
    replies, _ = ask(server.url, 200, tmp_path, **(limit | {"max_cost_usd": 9.0}))
    assert contents(replies) == [expected(i) for i in range(200)]
    assert server.stats()["batch_repeated"] == 0


def test_keys_are_sent_with_batches_and_shown_nowhere(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "s3cr3t-0123456789"
    monkeypatch.setenv("PLANTED", key)
    server.set(key=key)
    with_key = PLAIN | {"api_key_env": "PLANTED"}
    replies, _ = ask(server.url, 3, tmp_path, endpoint=with_key, **BATCH)
    assert contents(replies) == [expected(i) for i in range(3)]
    server.set(key="another")
    with pytest.raises(UserError, match=r"api_key_env: .* refuses the key in PLANTED") as caught:
        ask(server.url, 4, tmp_path, endpoint=with_key, **BATCH)
    assert "provided: ***" in str(caught.value)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if key.encode() in path.read_bytes()] == []
