"""A bad reply is one failed reply, whatever it contains, and wastes neither memory nor money."""

from __future__ import annotations

import json
import math
import sqlite3
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from llm_asking import N_PLAIN_PROBES, ask, contents, expected
from scripted_server import ScriptedServer

from nullsae.autointerp.explanation_text import explanation
from nullsae.autointerp.llm.answers import Answer, AttemptError, read_answer, retry_after_seconds
from nullsae.autointerp.llm.batch_api import read_line
from nullsae.autointerp.llm.bounded import lines_of
from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.kept_replies import Kept, unpacked
from nullsae.autointerp.llm.messages import AnswerToken, Reply
from nullsae.autointerp.llm.pieces import PackingError, Pieces, TooLongError
from nullsae.autointerp.llm.refusals import Asked, RefusedError
from nullsae.autointerp.replies import choice, judgements
from nullsae.config.llm import Llm

ASKED = Asked("m", "http://there/v1", None)
DEEP = "[" * 100_000
DIGITS = "9" * 5000


def answered(content: str, logprobs: str = "null", more: str = "") -> bytes:
    """Return a reply in raw JSON, put together from these parts."""
    return (
        f'{{"choices": [{{"message": {{"content": {content}}}, "logprobs": {logprobs}{more}}}]}}'
    ).encode()


def token(logprob: str, text: str = '"1"', more: str = "") -> str:
    top = f'[{{"token": "0", "logprob": {logprob}}}]'
    entry = f'"token": {text}, "logprob": {logprob}, "top_logprobs": {top}{more}'
    return f'{{"content": [{{{entry}}}]}}'


@pytest.mark.parametrize("content", ['"a\\ud83d"', '"\\udc00b"', '"x \\ud800\\ud800"'])
def test_half_a_surrogate_pair_is_replaced_before_anything_is_kept(content: str) -> None:
    reply = read_answer(Answer(200, None, answered(content)), ASKED).reply
    assert "\ufffd" in reply.content
    reply.content.encode()


@pytest.mark.parametrize(
    "value", ["1e400", "-1e400", "NaN", "1" + "0" * 400, "-1" + "0" * 400, "true", "5.0", '"0"']
)
def test_an_invalid_log_probability_is_left_out(value: str) -> None:
    reply = read_answer(Answer(200, None, answered('"1"', token(value))), ASKED).reply
    assert reply.content == "1"
    assert [one.alternatives for one in reply.tokens] == [()]
    assert judgements(reply, 1)[1].is_label


def test_slightly_more_than_certainty_is_certainty() -> None:
    reply = read_answer(Answer(200, None, answered('"1"', token("1e-7"))), ASKED).reply
    assert reply.tokens[0].alternatives == (("1", 0.0), ("0", 0.0))


@pytest.mark.parametrize("raw", ["6000000000", "[256]", "[-1]", '["a"]', "[1.5]", '"x"', "{}"])
def test_invalid_bytes_of_a_token_allocate_nothing(raw: str) -> None:
    # The token's text is not in the content, so its bytes are examined.
    body = answered('"1"', token("-0.1", '"\\ufffd"', f', "bytes": {raw}'))
    tracemalloc.start()
    reply = read_answer(Answer(200, None, body), ASKED).reply
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reply.content, reply.tokens) == ("1", ())
    assert most < 10e6


@pytest.mark.parametrize(
    "body",
    [
        DEEP.encode(),
        b'{"a":' * 50_000,
        answered(DEEP),
        b'{"choices": ' + DEEP.encode(),
        b'{"error": {"message": %s}}' % DIGITS.encode(),
        b'{"error": {"code": %s, "type": [[[]]]}}' % DIGITS.encode(),
        b'{"error": {"metadata": {"raw": %s}}}' % DIGITS.encode(),
        b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n',
        b"\xff\xfe\x00",
        b"",
    ],
    ids=[
        "lists",
        "objects",
        "content",
        "choices",
        "int",
        "codes",
        "raw",
        "stream",
        "bytes",
        "none",
    ],
)
@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_an_invalid_reply_is_one_failed_attempt(body: bytes, status: int) -> None:
    with pytest.raises((AttemptError, RefusedError)) as caught:
        read_answer(Answer(status, None, body), ASKED)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reason", ["1", '"' + "x" * 1000 + '"', '{"a": 1}', '"<b>"', "[3]"])
def test_an_invalid_finish_reason_is_not_kept(reason: str) -> None:
    reply = read_answer(
        Answer(200, None, answered('"a"', more=f', "finish_reason": {reason}')), ASKED
    ).reply
    assert (reply.content, reply.finish_reason) == ("a", "other")


@pytest.mark.parametrize(
    "header",
    [
        *("1e999", "nan", "Mon, 01 Jan 99999999999 00:00:00 GMT"),
        *("Mon, 99 Foo 1 1:1 +99999", "\\ud800"),
    ],
)
def test_an_invalid_retry_after_is_none(header: str) -> None:
    assert retry_after_seconds(header) in (None, 0.0)


def test_a_reply_that_is_far_too_long_is_cut_and_its_tokens_are_dropped() -> None:
    body = answered(json.dumps("x" * 5_000_000), token("-0.1", '"x"'))
    reply = read_answer(Answer(200, None, body), ASKED, max_completion_tokens=100).reply
    assert 20_000 < len(reply.content) < 30_000
    assert reply.tokens == ()


@pytest.mark.parametrize(
    "text",
    [
        *("9" * 5000, '{"1": ' + "9" * 5000, "[" * 5000, '{"1":' * 3000, "Window 1: " * 3000),
        *("(" * 9000, "<think>" * 3000, "1|0, " * 5000),
    ],
)
def test_answers_of_any_text_are_read_in_no_time(text: str) -> None:
    started = time.monotonic()
    alternatives = ((text, -0.1), ("٣" * 5000, -0.2), ("1", -0.3))
    reply = Reply(text, (AnswerToken(text, alternatives),), "stop")
    judgements(reply, 5)
    choice(reply, 5)
    explanation(reply)
    assert time.monotonic() - started < 5


def test_an_explanation_in_json_contains_no_half_of_a_pair() -> None:
    text = explanation(Reply('{"explanation": "cups \\ud83d and mugs"}', (), "stop"))
    assert text == "cups \ufffd and mugs"


# Read in pieces ------------------------------------------------------------------------------


def packed(data: bytes, bits: int) -> bytes:
    packing = zlib.compressobj(wbits=bits)
    return packing.compress(data) + packing.flush()


@pytest.mark.parametrize(("encoding", "bits"), [("gzip", 31), ("deflate", 15), ("deflate", -15)])
def test_compressed_data_is_decompressed_up_to_the_limit(encoding: str, bits: int) -> None:
    data = b"0123456789" * 1000
    pieces = Pieces(encoding, len(data))
    for byte in packed(data, bits):
        pieces.add(bytes([byte]))
    assert pieces.whole() == data
    bomb = packed(b" " * (50 << 20), bits)
    tracemalloc.start()
    with pytest.raises(TooLongError):
        Pieces(encoding, 4 << 20).add(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_consecutive_gzip_members_are_joined() -> None:
    pieces = Pieces("gzip", 100)
    pieces.add(packed(b"one ", 31) + packed(b"two", 31))
    assert pieces.whole() == b"one two"


@pytest.mark.parametrize(("encoding", "data"), [("gzip", b"no gzip"), ("br", b"x"), ("a, b", b"")])
def test_data_not_compressed_as_declared_is_refused(encoding: str, data: bytes) -> None:
    with pytest.raises(PackingError):
        Pieces(encoding, 100).add(data)


@pytest.mark.parametrize("value", [b"[],", b"{},", b"1,"])
def test_more_values_than_a_reply_can_have_are_not_read(value: bytes) -> None:
    pieces = Pieces(None, 8 << 20)
    pieces.add(value * 2_500_000)
    with pytest.raises(TooLongError):
        pieces.whole()


async def _pieces(*parts: bytes) -> Any:
    for part in parts:
        yield part


async def _lines(*parts: bytes) -> list[bytes]:
    return [line async for line in lines_of(_pieces(*parts), 5, 10)]


def test_only_a_line_that_is_too_long_is_left_out() -> None:
    import asyncio

    assert asyncio.run(_lines(b"ab\nc", b"d\n", b"x" * 9, b"x" * 9 + b"\nef", b"\ngh")) == [
        b"ab",
        b"cd",
        b"ef",
        b"gh",
    ]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"x", DEEP.encode(), b"3", b"[]", b'{"custom_id": 3}', b'{"custom_id": "a"}'),
        b'{"custom_id": "a", "response": {"status_code": 1e400, "body": {}}}',
        b'{"custom_id": "a", "error": {"message": 3, "code": %s}}' % DIGITS.encode(),
    ],
)
def test_a_line_of_a_batch_never_raises(line: bytes) -> None:
    found = read_line(line)
    assert found is None or found[0] == "a"


@pytest.mark.parametrize(
    "fault", [{"kind": "bomb", "megabytes": 40}, {"kind": "body", "text": DEEP}, {"kind": "drip"}]
)
def test_an_endless_reply_is_retried_and_harms_nothing(
    known: ScriptedServer, tmp_path: Path, fault: dict[str, Any]
) -> None:
    known.set(faults=[fault | {"until": 2}])
    started = time.monotonic()
    seconds = 1.0 if fault["kind"] == "drip" else 20.0
    replies, usage = ask(known.url, [0], tmp_path, timeout_seconds=seconds)
    assert contents(replies) == [expected(0)]
    assert usage.attempts_failed == 1
    assert time.monotonic() - started < 20


# Kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        Kept(Reply("a", (), "stop"), "m", 10**30, 2, 0.25),
        Kept(Reply("a\ud800", (), "stop"), "m", 1, 2, 0.25),
        Kept(Reply("a", (AnswerToken("a", (("b", math.nan),)),), "stop"), "m", 1, 2, 0.25),
        Kept(Reply("a", (), "stop"), "m", -1, 2, 0.25),
        Kept(Reply("a", (), "stop"), "m", 1, 2, -1e9),
    ],
    ids=["huge", "half", "nan", "negative", "money"],
)
def test_an_invalid_reply_is_not_kept_and_harms_no_other(tmp_path: Path, bad: Kept) -> None:
    path = tmp_path / "replies.sqlite"
    good = Kept(Reply("b", (), "stop"), "m", 1, 2, 0.5)
    cache = ReplyCache(path)
    cache.put(b"bad", bad)
    cache.put(b"good", good)
    cache.flush()
    assert cache.get(b"bad") is None
    assert cache.get(b"good") == good
    # The money is spent anyway, if the amount is valid.
    assert cache.total_cost_usd() == 0.5 + max(bad.cost_usd, 0.0)
    cache.close()


@pytest.mark.parametrize(
    "row",
    [
        ("[1]", "m", 1, 2, 0.0),
        ("[" * 50_000, "m", 1, 2, 0.0),
        (b"no zlib", "m", 1, 2, 0.0),
        ('["a", "stop", [["a", 3]]]', "m", 1, 2, 0.0),
        ('["a", "stop", []]', "m", -5, 2, 0.0),
        ('["a", "stop", []]', "m", 1, 2, -3.0),
        (zlib.compress(b" " * 100_000)[:-9], "m", 1, 2, 0.0),
    ],
)
def test_an_unreadable_cached_reply_is_requested_again(
    tmp_path: Path, row: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpacked(row)
    path = tmp_path / "replies.sqlite"
    ReplyCache(path).close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?)", (b"k", *row))
    connection.commit()
    connection.close()
    cache = ReplyCache(path)
    assert cache.get(b"k") is None
    new = Kept(Reply("new", (), "stop"), "m", 1, 2, 0.0)
    cache.put(b"k", new)
    cache.flush()
    assert cache.get(b"k") == new
    cache.close()


def test_half_a_pair_kept_by_an_older_version_is_replaced() -> None:
    text = '["a\\ud83d", "stop", [["a\\ud83d", [["b", -0.5], ["c", NaN]]]]]'
    kept = unpacked((text, "m", 1, 2, 0.0))
    assert kept.reply == Reply("a\ufffd", (AnswerToken("a\ufffd", (("b", -0.5),)),), "stop")


def test_invalid_abilities_are_probed_again(known: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / Llm().cache
    for value in ("[1]", "{", '{"top_logprobs": 1000000}'):
        connection = sqlite3.connect(path)
        connection.execute("UPDATE abilities SET value = ?", (value,))
        connection.commit()
        connection.close()
        known.reset()
        replies, usage = ask(known.url, [1], tmp_path)
        assert contents(replies) == [expected(1)]
        # The replies of the probes are cached.
        assert usage.cached_calls >= N_PLAIN_PROBES
