from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from llm_asking import N_PLAIN_PROBES, N_PROBES, PLAIN, ask, contents, expected, question
from scripted_server import ScriptedServer

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.client import LanguageModel, ask_all
from nullsae.autointerp.llm.session import Session
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm, Price
from nullsae.core.errors import UserError

N = 60


FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 429, "retry_after": "0.05"},
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 500},
    {"kind": "hang"},
    {"kind": "drop"},
    {"kind": "cut"},
    {"kind": "no_choices"},
]


@pytest.mark.parametrize("every", [20, 5])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_no_fault_loses_or_doubles_a_reply(
    server: ScriptedServer, tmp_path: Path, fault: dict[str, Any], every: int
) -> None:
    server.set(faults=[fault | {"every": every, "after": N_PLAIN_PROBES}])
    hangs = fault["kind"] == "hang"
    patience = {"timeout_seconds": 1.5, "max_failures_in_a_row": 1000} if hangs else {}
    replies, usage = ask(server.url, N, tmp_path, max_attempts=20, **patience)
    assert contents(replies) == [expected(i) for i in range(N)]
    stats = server.stats()
    n_faults = stats["kinds"].get(str(fault.get("status", fault["kind"])), 0)
    assert n_faults >= N // every
    # With short timeouts, a busy machine may miss an answer, which is then requested again.
    n_missed = usage.attempts_failed - n_faults - stats["kinds"].get("left", 0)
    assert n_missed == 0 or hangs
    assert stats["repeated_answered"] == n_missed
    assert (usage.calls, usage.cached_calls, usage.failed) == (N + N_PLAIN_PROBES, 0, 0)
    assert stats["answered"] == N + N_PLAIN_PROBES
    assert stats["peak_in_flight"] <= 8 + (stats["kinds"].get("hang", 0))


@pytest.mark.parametrize("every", [20, 5])
@pytest.mark.parametrize(
    ("kind", "finish_reason"),
    [("empty", "stop"), ("refusal", "refusal"), ("filtered", "content_filter")],
)
def test_an_empty_answer_is_kept(
    server: ScriptedServer, tmp_path: Path, kind: str, finish_reason: str, every: int
) -> None:
    server.set(faults=[{"kind": kind, "every": every, "after": N_PLAIN_PROBES}])
    replies, usage = ask(server.url, N, tmp_path)
    empty = [reply for reply in replies if reply is not None and not reply.content]
    assert len(empty) == N // every
    assert {reply.finish_reason for reply in empty} == {finish_reason}
    assert usage.attempts_failed == 0
    again, cached = ask(server.url, N, tmp_path)
    assert again == replies
    assert (cached.calls, cached.cached_calls) == (0, N)
    assert server.stats()["requests"] == N + N_PLAIN_PROBES


@pytest.mark.parametrize("every", [20, 5])
def test_replies_without_the_requested_log_probabilities_are_kept(
    server: ScriptedServer, tmp_path: Path, every: int
) -> None:
    server.set(faults=[{"kind": "no_logprobs", "every": every, "after": N_PROBES}])
    replies, usage = ask(server.url, N, tmp_path, logprobs=True, endpoint={})
    assert contents(replies) == [expected(i) for i in range(N)]
    bare = [reply for reply in replies if reply is not None and not reply.tokens]
    assert len(bare) == N // every
    for reply in replies:
        if reply is not None and reply.tokens:
            assert "".join(token.text for token in reply.tokens) == reply.content
            assert all(len(token.alternatives) == 20 for token in reply.tokens)
    assert usage.calls == N + N_PROBES
    again, _ = ask(server.url, N, tmp_path, logprobs=True, endpoint={})
    assert again == replies


def test_a_request_that_never_succeeds_is_counted_and_does_not_delay_the_others(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(faults=[{"kind": "status", "status": 500, "after": 2, "until": 5}])
    replies, usage = ask(server.url, 3, tmp_path, max_attempts=1)
    assert sorted(reply is None for reply in replies) == [False, True, True]
    assert (usage.failed, usage.attempts_failed, usage.calls) == (2, 2, 3)
    replies, usage = ask(server.url, 3, tmp_path)
    assert contents(replies) == [expected(i) for i in range(3)]
    assert (usage.calls, usage.cached_calls) == (2, 1)


def test_retry_after_delays_all_requests(server: ScriptedServer, tmp_path: Path) -> None:
    fault = {"kind": "status", "status": 429, "retry_after": "1", "after": 9, "until": 11}
    server.set(latency_seconds=0.05, faults=[fault])
    replies, usage = ask(server.url, 40, tmp_path)
    assert contents(replies) == [expected(i) for i in range(40)]
    assert usage.attempts_failed == 1
    times = server.stats()["times"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) > 0.8


def test_all_requests_succeed_despite_an_endpoints_concurrency_limit(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(latency_seconds=0.02, max_in_flight=4, retry_after="0.1")
    replies, usage = ask(server.url, N, tmp_path, concurrency=32, max_attempts=20)
    assert contents(replies) == [expected(i) for i in range(N)]
    assert usage.failed == 0


def test_the_same_request_in_flight_is_sent_once(server: ScriptedServer, tmp_path: Path) -> None:
    server.set(latency_seconds=0.1)
    replies, usage = ask(server.url, [1, 2] * 10, tmp_path)
    assert contents(replies) == [expected(1), expected(2)] * 10
    assert server.stats()["requests"] == 2 + N_PLAIN_PROBES
    assert (usage.calls, usage.cached_calls) == (2 + N_PLAIN_PROBES, 18)


def test_a_second_run_asks_nothing_and_needs_no_server(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        url = server.url
        first, _ = ask(url, N, tmp_path, logprobs=True, endpoint={})
    again, usage = ask(url, N, tmp_path, logprobs=True, endpoint={})
    assert again == first
    assert (usage.calls, usage.cached_calls, usage.cost_usd) == (0, N, 0)


def test_two_runs_share_cached_replies_and_pay_for_the_rest(
    server: ScriptedServer, tmp_path: Path
) -> None:
    prices = {"m": Price(input_usd_per_million_tokens=100.0, output_usd_per_million_tokens=1000.0)}
    _, first = ask(server.url, 10, tmp_path, prices=prices)
    _, second = ask(server.url, 25, tmp_path, prices=prices)
    assert (second.calls, second.cached_calls) == (15, 10)
    expected_usd = (first.prompt_tokens * 100 + first.completion_tokens * 1000) / 1e6
    assert first.cost_usd == pytest.approx(expected_usd)
    cache = ReplyCache(tmp_path / Llm().cache)
    assert cache.total_cost_usd() == pytest.approx(first.cost_usd + second.cost_usd)
    assert cache.count() == 25 + N_PLAIN_PROBES
    cache.close()


def test_progress_is_reported_after_each_question(server: ScriptedServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    session = Session(root=tmp_path, progress=lambda *told: seen.append(told))
    endpoint = Endpoint(model="m", base_url=server.url, **PLAIN)
    session.all(endpoint, lambda model: [model.ask(question(i)) for i in range(12)], 12)
    assert seen[-1][:2] == (12, 12)
    assert seen[-1][2].startswith(f"{12 + N_PLAIN_PROBES} calls, 0 cached, ")
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert len(seen) == 12


def test_spending_stops_before_the_limit_and_paid_replies_are_kept(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(latency_seconds=0.01)
    prices = {"m": Price(input_usd_per_million_tokens=100.0, output_usd_per_million_tokens=1000.0)}
    limit = {"prices": prices, "max_cost_usd": 0.8}
    with pytest.raises(UserError, match=r"llm\.max_cost_usd: .* of 0\.8 USD are spent") as caught:
        ask(server.url, 2 * N, tmp_path, **limit)
    n_kept = int(re.findall(r"(\d+) replies are kept", str(caught.value))[0])
    cache = ReplyCache(tmp_path / Llm().cache)
    spent = cache.total_cost_usd()
    cache.close()
    assert n_kept == server.stats()["answered"] > 5
    # A request's worst case is 0.14 USD, of which it uses about a tenth.
    assert 0.8 - 0.14 < spent <= 0.8
    replies, usage = ask(server.url, 2 * N, tmp_path, **(limit | {"max_cost_usd": 10.0}))
    assert contents(replies) == [expected(i) for i in range(2 * N)]
    assert usage.calls == 2 * N + N_PLAIN_PROBES - n_kept
    assert server.stats()["repeated_answered"] == 0


def test_an_endpoint_that_breaks_down_stops_the_run_and_earlier_replies_are_kept(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(faults=[{"kind": "status", "status": 502, "message": "no way", "after": 22}])
    with pytest.raises(UserError, match=r"attempts failed in a row.* 502: no way; 22 replies"):
        ask(server.url, N, tmp_path, max_failures_in_a_row=12)
    server.set(faults=[])
    replies, usage = ask(server.url, N, tmp_path)
    assert contents(replies) == [expected(i) for i in range(N)]
    assert (usage.calls, usage.cached_calls) == (N - 20, 20)
    assert server.stats()["repeated_answered"] == 0


def test_after_a_fatal_error_replies_in_flight_still_arrive_and_are_kept(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a third of a second may take longer than the usual few seconds.
    monkeypatch.setattr("nullsae.autointerp.llm.sending.GRACE_SECONDS", 60.0)
    fault = {"kind": "status", "status": 403, "message": "no", "after": 5, "until": 7}
    server.set(latency_seconds=0.3, faults=[fault])
    with pytest.raises(UserError, match=r"api_key_env: .* \(403: no\)"):
        ask(server.url, 30, tmp_path)
    stats = server.stats()
    assert 8 <= stats["answered"] == stats["requests"] - 1 < 20
    cache = ReplyCache(tmp_path / Llm().cache)
    assert cache.count() == stats["answered"]
    cache.close()


def test_an_error_of_the_caller_ends_the_run_and_keeps_the_replies(
    server: ScriptedServer, tmp_path: Path
) -> None:
    async def broken(model: LanguageModel) -> None:
        await model.ask(question(0))
        raise ZeroDivisionError

    def work(model: LanguageModel) -> list[Coroutine[Any, Any, Any]]:
        return [broken(model), *(model.ask(question(i)) for i in range(1, 200))]

    endpoint = Endpoint(model="m", base_url=server.url, **PLAIN)
    with pytest.raises(ZeroDivisionError):
        ask_all(endpoint, Llm(concurrency=2), work, root=tmp_path)
    cache = ReplyCache(tmp_path / Llm().cache)
    assert cache.count() == server.stats()["answered"] >= 2
    cache.close()


def test_coroutines_of_a_generator_are_created_only_as_needed(
    server: ScriptedServer, tmp_path: Path
) -> None:
    made: list[int] = []

    async def answer(model: LanguageModel, i: int) -> tuple[int, int]:
        reply = await model.ask(question(i))
        assert reply is not None
        return len(made), i

    def work(model: LanguageModel) -> Iterator[Coroutine[Any, Any, Any]]:
        for i in range(50):
            made.append(i)
            yield answer(model, i)

    endpoint = Endpoint(model="m", base_url=server.url, **PLAIN)
    found, _ = ask_all(endpoint, Llm(concurrency=2), work, root=tmp_path)
    assert [i for _, i in found] == list(range(50))
    assert found[0][0] <= 10


def test_a_model_works_in_a_running_event_loop(server: ScriptedServer, tmp_path: Path) -> None:
    async def run() -> str:
        endpoint = Endpoint(model="m", base_url=server.url, **PLAIN)
        async with LanguageModel(endpoint, Llm(), root=tmp_path) as model:
            reply = await model.ask(question(3))
            assert reply is not None
            return reply.content

    assert json.loads(asyncio.run(run())) == json.loads(expected(3))
