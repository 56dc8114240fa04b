"""Keys are refused in configs, never shown, and not sent to other machines unencrypted."""

from __future__ import annotations

from typing import Any

import pytest

from nullsae.config.addresses import is_local, shown_address
from nullsae.config.endpoints import Endpoint
from nullsae.config.keys import has_key, is_variable
from nullsae.config.parse import parse_section
from refusing import refused

KEY = "sk-proj-5up3rs3cr3tV4lue"
HEX = "0123456789abcdef0123456789abcdef"


def refusal(**keys: Any) -> str:
    return refused(parse_section, Endpoint, {"model": "m", **keys}, where="here")


@pytest.mark.parametrize(
    "keys",
    [
        {"api_key_env": KEY},
        {"api_key_env": HEX},
        {"api_key_env": "a" + HEX},
        {"api_key_env": "hf_" + HEX},
        {"api_key_env": "hf_" + "aBcDeFgHiJ" * 3},
        {"api_key_env": "s3cr3tv4lue"},
        {"api_key_env": "s3cr3t value"},
        {"api_key_env": [KEY]},
        {"api_key_env": {KEY: 1}},
        {"api_key_env": 5333000111222},
        {"headers_env": {"api-key": KEY}},
        {"headers_env": {KEY: "NAME"}},
        {"headers_env": KEY},
        {"headers_env": {"api-key": "a" + HEX}},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://{KEY}@host/v1"},
        {"base_url": f"user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?api-key={KEY}"},
        {"base_url": f"https://host/v1;token={KEY}"},
        {"base_url": f"https://host/api_key={KEY}/v1"},
        {"base_url": f"https://host/v1?API%2Dkey={KEY}"},
        {"base_url": f"https://host/v1?x={KEY}"},
        {"base_url": "https://host/v1?pass=s3cr3t"},
        {"base_url": f"https://host/v1?x={HEX}"},
        {"base_url": f"https://host/v1?{KEY}"},
        {"base_url": f"https://host/{KEY}/v1"},
        {"base_url": f"https://host/v1#{KEY}"},
        {"base_url": f"https://host/%73k-proj-{KEY[8:]}/v1"},
        {"base_url": f"host/v1?token={KEY}"},
        {"base_url": [f"https://host/{KEY}"]},
        {"extra_body": {"api_key": KEY}},
        {"extra_body": {"nested": [{"password": "hunter2"}]}},
        {"extra_body": {"metadata": {"who": f"Bearer {KEY}"}}},
        {"extra_body": {KEY: 1}},
        {"extra_body": KEY},
        {"api_key": KEY},
        {KEY: 1},
        {"model": {"a": KEY}},
        {"temperature": KEY},
        {"logprobs": KEY},
    ],
    ids=str,
)
def test_a_secret_in_a_config_is_refused_and_not_shown(keys: dict[str, Any]) -> None:
    said = refusal(**keys)
    assert said.startswith("here: ")
    for secret in ("s3cr3t", HEX, "hunter2", "5333000"):
        assert secret not in said


@pytest.mark.parametrize(
    "keys",
    [
        {"api_key_env": "OPENAI_API_KEY"},
        {"api_key_env": "my_key_2"},
        {"api_key_env": "KEY2"},
        {"api_key_env": None},
        {"headers_env": {"api-key": "AZURE_OPENAI_API_KEY", "X-Tenant": "TENANT"}},
        {"base_url": "https://a.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-10-21"},
        {"base_url": f"https://gateway.example/v1/{HEX}/openai"},
        {"base_url": "http://[::1]:8000/v1"},
        {"extra_body": {"max_tokens": 3, "chat_template_kwargs": {"enable_thinking": False}}},
        {"extra_body": {"prompt_cache_key": "study", "tokenizer": "a/b", "key": 3}},
    ],
    ids=str,
)
def test_text_without_secrets_is_accepted(keys: dict[str, Any]) -> None:
    parse_section(Endpoint, {"model": "m", **keys}, where="here")


@pytest.mark.parametrize(
    "url",
    [
        *("http://a b/v1", "http://a\n.b/v1", "http://a\\@b/v1", "http://a:99999/v1", "http:///v1"),
        *("a/v1", "http://a:0/v1", "ftp://a/v1", "http://[::1/v1", "http://a\u202eb/v1"),
    ],
)
def test_an_invalid_address_is_refused(url: str) -> None:
    assert refusal(base_url=url).startswith("here: base_url: ")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.9.8.7", "[::1]")),
        ("[::ffff:127.0.0.1]", True),
        *((f"127.{name}", False) for name in ("evil.com", "1", "0.0.1.evil.com", "0.0.1.nip.io")),
        *((name, False) for name in ("localhost.evil.com", "a.localhost", "localhost.", "0.0.0.0")),
        *((name, False) for name in ("2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1")),
        *((name, False) for name in ("[::]", "10.0.0.1", "[::1%25eth0]", "[::ffff:8.8.8.8]")),
        ("localhost@evil.com", False),
    ],
)
def test_only_loopback_addresses_are_local(host: str, local: bool) -> None:
    assert is_local(f"http://{host}:8000/v1") == local


@pytest.mark.parametrize("host", ["gpu7", "127.evil.com", "0x7f000001", "10.0.0.3"])
@pytest.mark.parametrize("keys", [{}, {"api_key_env": "A"}, {"headers_env": {"api-key": "A"}}])
def test_a_key_goes_to_no_other_machine_in_clear(host: str, keys: dict[str, Any]) -> None:
    endpoint = Endpoint(model="m", base_url=f"http://{host}:8000/v1", **keys)
    problem = endpoint.sent_in_clear([])
    assert problem is not None
    assert "without encryption" in problem
    assert "llm.insecure_hosts" in problem
    assert endpoint.sent_in_clear([host]) is None
    secure = Endpoint(model="m", base_url=f"https://{host}:8000/v1", **keys)
    assert secure.sent_in_clear([]) is None
    assert (
        Endpoint(model="m", base_url=f"http://{host}/v1", api_key_env=None).sent_in_clear([])
        is None
    )


def test_a_local_server_may_get_a_key_in_clear() -> None:
    for host in ("localhost", "127.0.0.1", "[::1]"):
        endpoint = Endpoint(model="m", base_url=f"http://{host}:8000/v1", api_key_env="A")
        assert endpoint.sent_in_clear([]) is None


def test_an_address_is_shown_without_what_its_query_says() -> None:
    shown = shown_address(f"https://user:{KEY}@host/v1?api-version=2024&x={KEY}#{KEY}")
    assert shown == "https://host/v1?api-version=***&x=***"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "A", "_x", "MY_KEY_2", "key"])
def test_names_of_variables_are_no_keys(name: str) -> None:
    assert is_variable(name)
    assert not has_key(name)
