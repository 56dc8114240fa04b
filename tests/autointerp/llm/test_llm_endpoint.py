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
        ({}, {}, Abilities(True, 20, True), 3),
        ({"json_schema": "refused"}, {}, Abilities(False, 20), 4),
        ({"json_schema": "ignored"}, {}, Abilities(False, 20), 3),
        ({"logprobs": "ignored"}, {}, Abilities(True, 0), 4),
        ({"logprobs": "refused"}, {}, Abilities(True, 0), 6),
        ({"max_top_logprobs": 5}, {}, Abilities(True, 5, True), 5),
        ({"logprobs_with_schema": False}, {}, Abilities(True, 20, False), 4),
        ({}, {"structured_output": "never"}, Abilities(False, 20), 2),
        ({}, {"logprobs": "never"}, Abilities(True, 0), 2),
        ({}, {"structured_output": "never", "logprobs": "never"}, Abilities(), 1),
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
            1,
        ),
        *(
            (
                {"no_system_role": {"status": status, "message": message}},
                {"structured_output": "never", "logprobs": "never"},
                Abilities(system_role=False),
                2,
            )
            for status, message in (
                (400, "System role not supported"),  # Gemma 2 in vLLM
                (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
                (400, "Unsupported value: 'messages[0].role' does not support 'system'"),  # o1-mini
                (422, "Template error: invalid operation"),  # text-generation-inference
                (400, "bad request"),
                (500, "Value is not callable: jinja raise_exception"),  # llama.cpp's server
            )
        ),
        (
            {
                "no_system_role": {"status": 400, "message": "Only user and model roles"},
                "refused_fields": ["temperature", "max_completion_tokens"],
            },
            {"structured_output": "never", "logprobs": "never"},
            Abilities(temperature=False, token_limit="max_tokens", system_role=False),
            4,
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
    found = cache.abilities(abilities_key(endpoint))
    cache.close()
    assert found is not None
    assert Abilities(**found) == abilities
    assert process.stats()["requests"] == n_probes + 2
    assert usage.calls + usage.attempts_failed == n_probes + 2
    if options.get("answers") is None:
        assert contents(replies) == [expected(i) for i in range(2)]
    ask(process.url, 4, tmp_path, logprobs=True, endpoint=settings)
    assert process.stats()["requests"] == n_probes + 4


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


USER = {"role": "user", "content": "u"}
SYSTEM = {"role": "system", "content": "s"}
ASSISTANT = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "sent"),
    [
        ((USER,), [USER]),
        ((SYSTEM, USER), [{"role": "user", "content": "s\n\nu"}]),
        (
            (SYSTEM, USER, ASSISTANT, USER),
            [{"role": "user", "content": "s\n\nu"}, ASSISTANT, USER],
        ),
        ((SYSTEM, SYSTEM, USER), [{"role": "user", "content": "s\n\ns\n\nu"}]),
        ((SYSTEM, ASSISTANT, USER), [{"role": "user", "content": "s"}, ASSISTANT, USER]),
        ((SYSTEM,), [{"role": "user", "content": "s"}]),
    ],
)
def test_without_a_system_role_its_text_opens_the_users_first_message(
    messages: tuple[dict[str, str], ...], sent: list[dict[str, str]]
) -> None:
    endpoint = Endpoint(model="m")
    request = Request(messages, 5)
    body = json.loads(request_body(request, endpoint, Abilities(system_role=False)))
    assert body["messages"] == sent
    assert json.loads(request_body(request, endpoint, Abilities()))["messages"] == list(messages)


def test_other_settings_are_found_out_anew() -> None:
    keys = {
        abilities_key(Endpoint(model=model, base_url=url, logprobs=logprobs))
        for model in ("m", "n")
        for url in ("http://a/v1", "http://b/v1")
        for logprobs in ("auto", "never")
    }
    assert len(keys) == 8
    seeded = abilities_key(Endpoint(model="m", base_url="http://a/v1", seed=3))
    assert seeded in keys
