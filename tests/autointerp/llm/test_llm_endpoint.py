from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llm_asking import PLAIN, ask, contents, expected
from scripted_server import Options, ScriptedServer

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.endpoint import Abilities, abilities_key, request_body
from nullsae.autointerp.llm.messages import Request
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

OLD_LIMIT = ("token_limit", "max_tokens")
SCHEMA = {"type": "object", "properties": {}}


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
        *(
            ({"forbidden": {name: refusal}}, PLAIN, Abilities(**{ability: value}), n_probes)
            for name, refusal, ability, value, n_probes in (
                ("max_completion_tokens", (422, "Extra inputs are not permitted"), *OLD_LIMIT, 2),
                ("max_completion_tokens", (400, "max_tokens: Field required"), *OLD_LIMIT, 2),
                ("max_completion_tokens", (400, "bad request"), *OLD_LIMIT, 3),
                ("temperature", (400, "bad request"), "temperature", False, 5),
            )
        ),
        ({"drops_system": True}, PLAIN, Abilities(system_role=False), 3),
        ({"obeys": False}, PLAIN, Abilities(), 3),
        ({"obeys": False, "drops_system": True}, PLAIN, Abilities(), 3),
        *(
            (
                {"no_system_role": {"status": status, "message": message}},
                {"structured_output": "never", "logprobs": "never"},
                Abilities(system_role=False),
                3,
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
def test_an_endpoints_abilities_are_probed_once(
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
    # An answer that is cut at 100 tokens is requested again with 400.
    times = 2 if options.get("answers") == "numbers" else 1
    assert process.stats()["requests"] == n_probes + times * 2
    assert usage.calls + usage.attempts_failed == n_probes + times * 2
    if options.get("answers") is None:
        assert contents(replies) == [expected(i) for i in range(2)]
    ask(process.url, 4, tmp_path, logprobs=True, endpoint=settings)
    assert process.stats()["requests"] == n_probes + times * 4


def test_a_requests_bytes_do_not_depend_on_the_order_of_fields() -> None:
    one = Endpoint(model="m", extra_body={"a": 1, "b": {"c": 1, "d": 2}})
    other = Endpoint(model="m", extra_body={"b": {"d": 2, "c": 1}, "a": 1})
    request = Request(({"role": "user", "content": "é"},), 5)
    reordered = Request(({"content": "é", "role": "user"},), 5)
    assert request_body(request, one, Abilities()) == request_body(reordered, other, Abilities())


def test_a_request_follows_settings_and_abilities() -> None:
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
def test_without_a_system_role_its_text_starts_the_users_first_message(
    messages: tuple[dict[str, str], ...], sent: list[dict[str, str]]
) -> None:
    endpoint = Endpoint(model="m")
    request = Request(messages, 5)
    body = json.loads(request_body(request, endpoint, Abilities(system_role=False)))
    assert body["messages"] == sent
    assert json.loads(request_body(request, endpoint, Abilities()))["messages"] == list(messages)


def test_other_settings_are_probed_again() -> None:
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


NO_LOGPROBS = "You are not allowed to request logprobs"


@pytest.mark.parametrize(
    ("forbidden", "abilities"),
    [
        ({"logprobs": [403, NO_LOGPROBS]}, Abilities(True, 0)),
        ({"logprobs": [401, NO_LOGPROBS]}, Abilities(True, 0)),
        ({"logprobs": [501, "not implemented"]}, Abilities(True, 0)),
        ({"response_format": [403, "not part of your plan"]}, Abilities(False, 20)),
        (
            {"logprobs": [403, "no"], "response_format": [403, "no"]},
            Abilities(False, 0),
        ),
        ({"temperature": [403, "you may not set temperature"]}, Abilities(True, 20, True, False)),
    ],
)
def test_a_key_without_a_permission_is_a_missing_ability_not_a_bad_key(
    process: ScriptedServer, tmp_path: Path, forbidden: dict[str, Any], abilities: Abilities
) -> None:
    process.set(**(vars(Options()) | {"forbidden": forbidden}))
    process.reset()
    replies, _ = ask(process.url, 4, tmp_path, logprobs=True, endpoint={})
    assert contents(replies) == [expected(i) for i in range(4)]
    cache = ReplyCache(tmp_path / Llm().cache)
    endpoint = Endpoint(model="m", base_url=process.url)
    assert cache.abilities(abilities_key(endpoint, 8192)) == vars(abilities)
    cache.close()


@pytest.mark.parametrize(
    "path", ["/openai/deployments/gpt", "/openai/deployments/gpt/chat/completions"]
)
def test_the_query_of_an_address_follows_the_path_and_keys_go_into_headers(
    process: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("AZURE_KEY", "s3cr3t-0123456789")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    process.set(**(vars(Options()) | {"header": {"api-key": "s3cr3t-0123456789"}}))
    process.reset()
    url = f"{process.root}{path}?api-version=2024-10-21&x=1"
    azure = PLAIN | {"headers_env": {"api-key": "AZURE_KEY"}}
    replies, _ = ask(url, 2, tmp_path, endpoint=azure)
    assert contents(replies) == [expected(i) for i in range(2)]
    stats = process.stats()
    assert stats["paths"] == {
        "/openai/deployments/gpt/chat/completions?api-version=2024-10-21&x=1": 4
    }
    assert stats["authorization"] == {"none": 4}
    # A wrong key is named by its variable, and blanked in the endpoint's answer that repeats it.
    monkeypatch.setenv("AZURE_KEY", "wr0ng-0123456789")
    with pytest.raises(UserError, match=r"headers_env: .* refuses the key in AZURE_KEY") as caught:
        ask(url, 3, tmp_path, endpoint=azure)
    assert "invalid key ***" in str(caught.value)
    monkeypatch.delenv("AZURE_KEY")
    with pytest.raises(UserError, match=r"headers_env\.api-key: .* AZURE_KEY is not set"):
        ask(url, 3, tmp_path, endpoint=azure)
