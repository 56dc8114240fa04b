"""A key that an endpoint sends back is shown nowhere, in any spelling."""

from __future__ import annotations

import base64
import json
import logging
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from llm_asking import PLAIN, ask
from scripted_server import ECHOES, ScriptedServer

from nullsae.autointerp.llm.answers import Answer, read_answer
from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.refusals import Asked, RefusedError
from nullsae.autointerp.llm.secrets import BLANK, Secrets
from nullsae.config.llm import Llm
from refusing import refused

KEY = "sk-planted-5up3r+s3cr3t/0="
SECRETS = Secrets({"Authorization": f"Bearer {KEY}", "X-Tenant": "1"})


def understood(text: str) -> str:
    """Return everything that a text can be decoded to."""
    forms = [text, text.replace("\u200b", "")]
    for _ in range(3):
        text = unescape(unquote(text))
        forms.append(text)
    forms.append(re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), text))
    return "\n".join(forms).casefold()


@pytest.mark.parametrize("way", ECHOES)
def test_a_key_is_blanked_in_any_spelling_and_the_rest_stays(way: str) -> None:
    text = f"before {ECHOES[way](KEY)} after"
    blanked = SECRETS.blank(text)
    assert blanked.startswith("before")
    assert blanked.endswith("after")
    assert BLANK in blanked
    assert KEY.casefold() not in understood(blanked)
    assert KEY[:8].casefold() not in understood(blanked)


@pytest.mark.parametrize(
    "text",
    [
        "a \\" + "u0073" + KEY[1:],
        KEY.replace("-", "&hyphen;").replace("/", "\\/"),
        "%73" + "\\u006b" + KEY[2:],
        "".join(f"%25{ord(c):02x}" for c in KEY[:9]) + KEY[9:].upper(),
        base64.urlsafe_b64encode(b"xy" + KEY.encode() + b"z").decode(),
        "\uff53\uff4b" + KEY[2:],
        " ".join(KEY),
        "".join(f"\\U{ord(c):08x}" for c in KEY),
    ],
    ids=["one escape", "names", "mixed", "part", "urlsafe", "fullwidth", "spaced", "long"],
)
def test_a_key_in_several_spellings_at_once_is_blanked(text: str) -> None:
    blanked = SECRETS.blank(f"says {text}")
    assert not SECRETS.is_in(blanked)
    assert KEY.casefold() not in understood(blanked)


@pytest.mark.parametrize("text", ["", "nothing", "sk-planted", "100% & more \\u0041", "é" * 50])
def test_a_text_without_a_key_is_unchanged(text: str) -> None:
    assert SECRETS.blank(text) == text
    assert Secrets({}).blank(KEY) == KEY


@pytest.mark.parametrize("way", ["escapes", "percent", "entities", "case", "unseen"])
def test_no_error_of_an_endpoint_shows_a_key(way: str) -> None:
    body = b'{"error": {"message": "bad key: %s"}}' % ECHOES[way](KEY).encode()
    with pytest.raises(RefusedError) as caught:
        read_answer(Answer(401, None, body), Asked("m", "http://a/v1", "A"), SECRETS)
    said = str(caught.value) + caught.value.said
    assert BLANK in said
    assert KEY.casefold() not in understood(said)


def test_the_tokens_of_a_reply_with_a_key_are_dropped() -> None:
    tokens = [{"token": c, "logprob": -0.1, "top_logprobs": []} for c in KEY]
    alternatives = [{"token": KEY, "logprob": -2.0}, {"token": "1", "logprob": -0.2}]
    one = {"token": "1", "logprob": -0.2, "top_logprobs": alternatives}
    for content, entries in ((KEY, tokens), ("1", [one])):
        choice = {"message": {"content": content}, "logprobs": {"content": entries}}
        answer = Answer(200, None, json.dumps({"choices": [choice]}).encode())
        reply = read_answer(answer, Asked("m", "http://a/v1", None), SECRETS).reply
        assert KEY not in repr(reply)
        assert "".join(token.text for token in reply.tokens) in ("", reply.content)


@pytest.mark.parametrize("way", ["escapes", "percent", "case"])
def test_a_key_that_is_sent_back_is_in_no_reply_cache_or_log(
    server: ScriptedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    key = "sk-planted-5up3rs3cr3t"
    monkeypatch.setenv("PLANTED", key)
    with_key: dict[str, Any] = PLAIN | {"api_key_env": "PLANTED"}
    server.set(echo=way)
    caplog.set_level(logging.DEBUG)
    replies, _ = ask(server.url, 2, tmp_path, endpoint=with_key)
    assert [reply.content for reply in replies if reply] == [f"You sent {BLANK} to me"] * 2
    server.set(key="another")
    said = refused(ask, server.url, [7], tmp_path, endpoint=with_key)
    shown = ECHOES[way](key)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    found = "".join(path.read_bytes().decode("latin-1") for path in files)
    for text in (said, caplog.text, found):
        assert shown.casefold() not in text.casefold()
        assert key.casefold() not in understood(text)


def test_only_the_owner_can_read_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "study" / Llm().cache
    for _ in range(2):
        cache = ReplyCache(path)
        with cache.alone(b"some key"):
            pass
        cache.keep_abilities(b"k", {})
        files = [p for p in path.parent.iterdir() if p.is_file()]
        assert len(files) >= 3
        assert {p.stat().st_mode & 0o777 for p in files} == {0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700
        cache.close()
        # As an older version created it.
        path.chmod(0o644)
