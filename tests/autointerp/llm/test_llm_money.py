"""`llm.max_cost_usd` is a hard limit, whatever happens to a request."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from llm_asking import PLAIN, ask, contents, expected, question
from scripted_server import ScriptedServer

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.endpoint import Abilities, request_body
from nullsae.autointerp.llm.session import Session
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm, Price
from nullsae.core.errors import UserError

PRICES = {"m": Price(input_usd_per_million_tokens=100.0, output_usd_per_million_tokens=1000.0)}


@pytest.fixture
def server(known: ScriptedServer) -> ScriptedServer:
    return known


def spent(root: Path) -> float:
    cache = ReplyCache(root / Llm().cache)
    usd = cache.total_cost_usd()
    cache.close()
    return usd


def worst(url: str) -> float:
    """Return the most a question can cost: one token per byte, and the longest answer allowed."""
    endpoint = Endpoint(model="m", base_url=url, **PLAIN)
    return (len(request_body(question(0), endpoint, Abilities())) * 100 + 100 * 1000) / 1e6


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "hang"},
        {"kind": "drop"},
        {"kind": "cut"},
        {"kind": "no_choices"},
        {"kind": "status", "status": 504},
        {"kind": "status", "status": 408},
    ],
    ids=lambda fault: str(fault.get("status", fault["kind"])),
)
def test_an_attempt_that_may_be_billed_counts_at_its_maximum(
    server: ScriptedServer, tmp_path: Path, fault: dict[str, Any]
) -> None:
    server.set(faults=[fault | {"until": 3}])
    settings = {"prices": PRICES, "timeout_seconds": 0.5}
    replies, usage = ask(server.url, [0], tmp_path, **settings)
    assert contents(replies) == [expected(0)]
    assert usage.attempts_failed == 2
    assert usage.lost_usd == pytest.approx(2 * worst(server.url))
    assert spent(tmp_path) == pytest.approx(usage.cost_usd + usage.lost_usd)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_rejected_attempt_costs_nothing(
    server: ScriptedServer, tmp_path: Path, status: int
) -> None:
    server.set(faults=[{"kind": "status", "status": status, "until": 3}])
    _, usage = ask(server.url, [0], tmp_path, prices=PRICES)
    assert (usage.attempts_failed, usage.lost_usd) == (2, 0)
    assert spent(tmp_path) == pytest.approx(usage.cost_usd)


@pytest.mark.parametrize("kind", ["hang", "drop", "no_choices"])
def test_attempts_without_a_reply_are_not_sent_beyond_the_limit(
    server: ScriptedServer, tmp_path: Path, kind: str
) -> None:
    server.set(faults=[{"kind": kind}])
    # Enough for seven of them, with eight in flight.
    limit = 7.5 * worst(server.url)
    settings = {"max_failures_in_a_row": 1000, "timeout_seconds": 0.5, "max_attempts": 3}
    with pytest.raises(UserError, match=r"llm\.max_cost_usd"):
        ask(server.url, 40, tmp_path, prices=PRICES, max_cost_usd=limit, **settings)
    assert server.stats()["requests"] == 7
    assert spent(tmp_path) == pytest.approx(7 * worst(server.url))


@pytest.mark.parametrize("concurrency", [1, 32])
def test_concurrent_requests_never_cost_more_than_the_limit(
    server: ScriptedServer, tmp_path: Path, concurrency: int
) -> None:
    # Each uses the maximum.
    server.set(latency_seconds=0.01, answers="numbers")
    capped = PLAIN | {"completion_tokens_cap": 100}
    limit = 10.5 * worst(server.url)
    settings = {"concurrency": concurrency, "prices": PRICES, "max_cost_usd": limit}
    with pytest.raises(UserError, match=r"llm\.max_cost_usd|completion_tokens_cap"):
        ask(server.url, 200, tmp_path, endpoint=capped, **settings)
    assert 0 < spent(tmp_path) <= limit


def test_the_costs_of_a_job_include_what_may_have_been_paid(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(faults=[{"kind": "no_choices", "until": 2}])
    session = Session(lambda: Llm(prices=PRICES), root=tmp_path, costs=tmp_path / "costs.json")
    endpoint = Endpoint(model="m", base_url=server.url, **PLAIN)
    session.all(endpoint, lambda model: [model.ask(question(0))], 1)
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["paid_usd"] - costs["cost_usd"] == pytest.approx(worst(server.url))


LIES: list[Any] = [
    {"prompt_tokens": -(10**9), "completion_tokens": 10},
    {"prompt_tokens": 60, "completion_tokens": -1},
    {"prompt_tokens": 10**30, "completion_tokens": 10},
    {"prompt_tokens": 60, "completion_tokens": 10**9},
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": 1.5, "completion_tokens": 2.5},
    {"prompt_tokens": True, "completion_tokens": "10"},
    [1, 2],
    "none",
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie)[:60])
def test_implausible_counts_are_estimated_at_the_maximum_cost(
    server: ScriptedServer, tmp_path: Path, lie: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.set(usage=lie)
    _, usage = ask(server.url, 3, tmp_path, prices=PRICES)
    assert usage.cost_usd == pytest.approx(3 * worst(server.url))
    assert spent(tmp_path) == pytest.approx(usage.cost_usd)
    assert 0 < usage.prompt_tokens < 3 * 1000
    assert 0 < usage.completion_tokens < 3 * 100
    assert usage.estimated == 3
    assert [r.levelname for r in caplog.records if "estimated" in r.message] == ["WARNING"]


@pytest.mark.parametrize("lie", LIES[:5], ids=lambda lie: str(lie)[:60])
def test_a_limit_holds_for_an_endpoint_that_lies(
    server: ScriptedServer, tmp_path: Path, lie: Any
) -> None:
    server.set(usage=lie)
    limit = 5.5 * worst(server.url)
    with pytest.raises(UserError, match=r"llm\.max_cost_usd"):
        ask(server.url, 40, tmp_path, prices=PRICES, max_cost_usd=limit, concurrency=1)
    assert server.stats()["requests"] == 5
    assert 0 < spent(tmp_path) <= limit


@pytest.mark.parametrize("lie", LIES[:4], ids=lambda lie: str(lie)[:60])
def test_false_counts_of_one_endpoint_do_not_change_the_budget_of_another(
    server: ScriptedServer, tmp_path: Path, lie: Any
) -> None:
    with ScriptedServer() as honest:
        ask(honest.url, 2, tmp_path, prices=PRICES)
        before = spent(tmp_path)
        server.set(usage=lie)
        ask(server.url, 1, tmp_path, prices=PRICES)
        assert spent(tmp_path) == pytest.approx(before + worst(server.url))
        left = before + worst(server.url) + 1.5 * worst(honest.url)
        replies, _ = ask(honest.url, [5], tmp_path, prices=PRICES, max_cost_usd=left)
        assert contents(replies) == [expected(5)]


def test_excess_tokens_count_and_are_reserved_from_then_on(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(usage={"prompt_tokens": 60, "completion_tokens": 300})
    one = (60 * 100 + 300 * 1000) / 1e6
    settings = {"concurrency": 1, "prices": PRICES, "max_cost_usd": 4.5 * one}
    with pytest.raises(UserError, match=r"llm\.max_cost_usd"):
        ask(server.url, 40, tmp_path, **settings)
    assert server.stats()["requests"] == 4
    assert spent(tmp_path) == pytest.approx(4 * one)


def test_negative_spending_of_an_older_version_is_not_available(tmp_path: Path) -> None:
    path = tmp_path / Llm().cache
    ReplyCache(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE spending SET cost_usd = -4000")
    connection.commit()
    connection.close()
    cache = ReplyCache(path)
    assert cache.total_cost_usd() == 0.0
    assert cache.reserve(1.5, 1.0) == 0.0
    cache.release(0.0, spent_usd=0.25)
    assert cache.total_cost_usd() == 0.25
    cache.close()
