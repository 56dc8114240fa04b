from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_asking import ask, contents, expected
from scripted_server import Options, ScriptedServer

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.endpoint import Abilities, abilities_key, request_body
from nullsae.autointerp.llm.messages import Request
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm

SCHEMA = {"type": "object", "properties": {}}


@pytest.fixture(scope="module")
def process() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.mark.parametrize(
    ("options", "settings", "abilities", "n_probes"),
    [
        ({}, {}, Abilities(True, 20, True), 4),
        ({"json_schema": "refused"}, {}, Abilities(False, 20), 5),
        ({"json_schema": "ignored"}, {}, Abilities(False, 20), 4),
        ({"logprobs": "ignored"}, {}, Abilities(True, 0), 5),
        ({"logprobs": "refused"}, {}, Abilities(True, 0), 7),
        ({"max_top_logprobs": 5}, {}, Abilities(True, 5, True), 6),
        ({"logprobs_with_schema": False}, {}, Abilities(True, 20, False), 5),
        ({}, {"structured_output": "never"}, Abilities(False, 20), 3),
        ({}, {"logprobs": "never"}, Abilities(True, 0), 3),
        ({}, {"structured_output": "never", "logprobs": "never"}, Abilities(), 2),
        (
            {"refused_fields": ["temperature", "max_completion_tokens"]},
            {"structured_output": "never", "logprobs": "never"},
            Abilities(temperature=False, token_limit="max_tokens"),
            3,
        ),
        (
            {"ignored_fields": ["max_completion_tokens"], "answers": "numbers"},
            {"structured_output": "never", "logprobs": "never"},
            Abilities(token_limit="max_tokens"),
            2,
        ),
    ],
)
def test_what_an_endpoint_can_do_is_found_out_once(
    process: ScriptedServer,
    tmp_path: Path,
    options: dict[str, Any],
    settings: dict[str, Any],
    abilities: Abilities,
    n_probes: int,
) -> None:
    process.set(**(vars(Options()) | options))
    process.reset()
    replies, usage = ask(process.url, 2, tmp_path, logprobs=True, endpoint=settings)
    endpoint = Endpoint(model="m", base_url=process.url, **settings)
    cache = ReplyCache(tmp_path / Llm().cache)
    found = cache.abilities(abilities_key(endpoint, 8192))
    cache.close()
    assert found is not None
    assert Abilities(**found) == abilities
    # An answer that is cut at 100 tokens is asked for again with 400.
    times = 2 if options.get("answers") == "numbers" else 1
    assert process.stats()["requests"] == n_probes + times * 2
    assert usage.calls + usage.attempts_failed == n_probes + times * 2
    if options.get("answers") is None:
        assert contents(replies) == [expected(i) for i in range(2)]
    ask(process.url, 4, tmp_path, logprobs=True, endpoint=settings)
    assert process.stats()["requests"] == n_probes + times * 4


def test_a_request_is_the_same_bytes_whatever_the_order_of_its_fields() -> None:
    one = Endpoint(model="m", extra_body={"a": 1, "b": {"c": 1, "d": 2}})
    other = Endpoint(model="m", extra_body={"b": {"d": 2, "c": 1}, "a": 1})
    request = Request(({"role": "user", "content": "é"},), 5)
    reordered = Request(({"content": "é", "role": "user"},), 5)
    assert request_body(request, one, Abilities()) == request_body(reordered, other, Abilities())


def test_a_request_holds_what_the_settings_and_abilities_say() -> None:
    endpoint = Endpoint(
        model="m", temperature=0.5, seed=3, extra_body={"reasoning_effort": "minimal"}
    )
    request = Request(({"role": "user", "content": "x"},), 5, schema=SCHEMA, logprobs=True)
    body = json.loads(request_body(request, endpoint, Abilities(True, 20, True)))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "max_completion_tokens": 5,
        "temperature": 0.5,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 20,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
        },
        "reasoning_effort": "minimal",
    }
    weak = Abilities(temperature=False, token_limit="max_tokens")
    assert json.loads(request_body(request, endpoint, weak)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 5,
        "seed": 3,
        "reasoning_effort": "minimal",
    }
    apart = json.loads(request_body(request, endpoint, Abilities(True, 20, False)))
    assert "response_format" not in apart
    assert apart["top_logprobs"] == 20


def test_other_settings_are_found_out_anew() -> None:
    keys = {
        abilities_key(Endpoint(model=model, base_url=url, logprobs=logprobs), longest)
        for model in ("m", "n")
        for url in ("http://a/v1", "http://b/v1")
        for logprobs in ("auto", "never")
        for longest in (100, 400)
    }
    assert len(keys) == 16
    seeded = abilities_key(Endpoint(model="m", base_url="http://a/v1", seed=3), 100)
    assert seeded in keys
