"""Truncated or empty answers: requested again with more tokens, or the end of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_asking import N_PLAIN_PROBES, PLAIN, ask, contents, expected
from scripted_server import ScriptedServer

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.endpoint import Abilities, abilities_key
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError


def know(server: ScriptedServer, root: Path) -> None:
    """Have the server's abilities probed before it starts to reason."""
    ask(server.url, [99], root)
    server.reset()


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ({"reasoning_tokens": 300}, (100, 400)),
        ({"reasoning_tokens": 3000}, (100, 400, 1600, 6400)),
        ({"reasoning_tokens": 7000}, (100, 400, 1600, 6400, 8192)),
        ({"reasoning_tokens": 300, "cut_as": "max_tokens"}, (100, 400)),
        ({"reasoning_tokens": 300, "cut_as": "MAX_TOKENS"}, (100, 400)),
        # The reply is not marked as cut, but it is empty and as long as allowed.
        ({"reasoning_tokens": 300, "cut_as": "stop"}, (100, 400)),
        # OpenAI refuses an answer that ends before its first word.
        ({"reasoning_tokens": 500, "cut_as": "400"}, (100, 400, 1600)),
        ({"answers": "numbers"}, (100, 400)),
    ],
)
def test_a_truncated_answer_is_requested_again_with_four_times_the_tokens(
    server: ScriptedServer, tmp_path: Path, options: dict[str, Any], limits: tuple[int, ...]
) -> None:
    know(server, tmp_path)
    server.set(**options)
    replies, usage = ask(server.url, 8, tmp_path)
    if "answers" not in options:
        assert contents(replies) == [expected(i) for i in range(8)]
    assert all(reply and reply.content and not reply.is_cut for reply in replies)
    assert server.stats()["limits"] == {str(limit): 8 for limit in limits}
    assert (usage.failed, usage.cut) == (0, 8 * (len(limits) - 1))
    again, cached = ask(server.url, 8, tmp_path)
    assert (again, cached.calls) == (replies, 0)


def test_an_answer_truncated_at_the_cap_does_not_count_and_is_not_paid_again(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(reasoning_tokens=1000)
    capped = PLAIN | {"completion_tokens_cap": 500}
    for _ in range(2):
        with pytest.raises(UserError, match="completion_tokens_cap, max_completion_tokens: 8 of 8"):
            ask(server.url, 8, tmp_path, endpoint=capped)
        assert server.stats()["limits"] == {"64": 1, "100": 8, "400": 9, "500": 9}
    replies, usage = ask(server.url, 8, tmp_path)
    assert contents(replies) == [expected(i) for i in range(8)]
    assert server.stats()["limits"] == {"64": 1, "100": 8, "400": 9, "500": 9, "1600": 9}
    assert usage.failed == 0


def test_a_limit_above_the_cap_is_unchanged(server: ScriptedServer, tmp_path: Path) -> None:
    server.set(reasoning_tokens=20)
    replies, _ = ask(server.url, 3, tmp_path, endpoint=PLAIN | {"completion_tokens_cap": 10})
    assert contents(replies) == [expected(i) for i in range(3)]


def test_requests_are_not_repeated_beyond_the_models_own_limit(
    server: ScriptedServer, tmp_path: Path
) -> None:
    know(server, tmp_path)
    server.set(most_tokens=1000, reasoning_tokens=5000)
    with pytest.raises(UserError, match=r"completion_tokens_cap.* 9 of 9 .*what the endpoint has"):
        ask(server.url, 9, tmp_path)
    limits = server.stats()["limits"]
    assert (limits["100"], limits["400"]) == (9, 9)
    assert [*limits] == ["100", "400", "1600"]


def test_mostly_truncated_answers_end_a_long_job_early(
    server: ScriptedServer, tmp_path: Path
) -> None:
    know(server, tmp_path)
    server.set(reasoning_tokens=10_000)
    capped = PLAIN | {"completion_tokens_cap": 100}
    with pytest.raises(UserError, match=r"completion_tokens_cap.* of 2\d answers of m at http:"):
        ask(server.url, 300, tmp_path, endpoint=capped)
    assert server.stats()["requests"] < 60


@pytest.mark.parametrize(
    ("kind", "n", "said"),
    [
        ("empty", 20, "extra_body, model: 20 of 20 answers of m .* are empty"),
        ("refusal", 20, "model: 20 of 20 answers of m .* are refusals"),
        ("filtered", 25, "model: 2. of 2. answers of m .* are refusals"),
    ],
)
def test_mostly_empty_answers_end_a_job_and_name_the_key_to_change(
    server: ScriptedServer, tmp_path: Path, kind: str, n: int, said: str
) -> None:
    server.set(faults=[{"kind": kind, "after": N_PLAIN_PROBES}])
    with pytest.raises(UserError, match=said) as caught:
        ask(server.url, n, tmp_path)
    assert "\n" not in str(caught.value)
    assert "replies are kept" in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "refusal", "filtered"])
def test_a_few_empty_answers_do_not_end_a_small_job(
    server: ScriptedServer, tmp_path: Path, kind: str
) -> None:
    server.set(faults=[{"kind": kind, "after": N_PLAIN_PROBES}])
    replies, usage = ask(server.url, 3, tmp_path)
    assert contents(replies) == ["", "", ""]
    assert usage.empty == 3


def test_some_truncated_answers_count_as_failed_and_the_others_are_kept(
    server: ScriptedServer, tmp_path: Path
) -> None:
    capped = PLAIN | {"completion_tokens_cap": 100}
    know(server, tmp_path)
    ask(server.url, 6, tmp_path, endpoint=capped)
    server.set(reasoning_tokens=200)
    replies, usage = ask(server.url, 10, tmp_path, endpoint=capped)
    assert contents(replies) == [expected(i) for i in range(6)] + [None] * 4
    assert (usage.failed, usage.calls, usage.cached_calls) == (4, 4, 6)


def test_abilities_hidden_by_small_limits_are_found_with_larger_ones(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(reasoning_tokens=900)
    with pytest.raises(UserError, match="completion_tokens_cap"):
        ask(server.url, 3, tmp_path, logprobs=True, endpoint={"completion_tokens_cap": 400})
    replies, _ = ask(server.url, 3, tmp_path, logprobs=True, endpoint={})
    assert all(reply and reply.tokens for reply in replies)
    cache = ReplyCache(tmp_path / Llm().cache)
    endpoint = Endpoint(model="m", base_url=server.url)
    found = [cache.abilities(abilities_key(endpoint, longest)) for longest in (400, 8192)]
    cache.close()
    assert [Abilities(**one) for one in found if one] == [Abilities(), Abilities(True, 20, True)]


def test_the_first_question_leaves_room_for_reasoning(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.set(reasoning_tokens=300, cut_as="400")
    replies, _ = ask(server.url, 3, tmp_path)
    assert contents(replies) == [expected(i) for i in range(3)]
