from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from nullsae.autointerp.llm.answers import (
    Answer,
    AttemptError,
    Valid,
    read_answer,
    retry_after_seconds,
)
from nullsae.autointerp.llm.refusals import Asked, RefusedError

ASKED = Asked("small", "http://there/v1", "A_KEY")


def read(value: Any, status: int = 200, retry_after: str | None = None) -> Valid:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return read_answer(Answer(status, retry_after, content), ASKED)


def answered(
    content: Any, tokens: list[dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    choice: dict[str, Any] = {"message": {"content": content}, "finish_reason": "stop", **more}
    if tokens is not None:
        choice["logprobs"] = {"content": tokens}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def token(text: str, logprob: float, *others: tuple[str, float], raw: Any = None) -> dict[str, Any]:
    top = [{"token": other, "logprob": value} for other, value in others]
    return {"token": text, "logprob": logprob, "bytes": raw, "top_logprobs": top}


@pytest.mark.parametrize(
    "reason",
    [
        *("length", "MAX_TOKENS", "max_output_tokens", "model_length", "max_new_tokens"),
        *("token_limit", "truncated", "incomplete", "model_context_window_exceeded"),
    ],
)
def test_a_token_limit_is_recognized_under_any_name(reason: str) -> None:
    assert read(answered("yes", finish_reason=reason)).reply.finish_reason == "length"


def test_a_plain_answer_gives_its_content_and_counts() -> None:
    valid = read(answered("yes"))
    assert (valid.reply.content, valid.reply.tokens, valid.reply.finish_reason) == (
        "yes",
        (),
        "stop",
    )
    assert (valid.prompt_tokens, valid.completion_tokens) == (7, 3)


@pytest.mark.parametrize(
    ("choice", "finish_reason"),
    [
        ({"message": {"content": None}, "finish_reason": "length"}, "length"),
        ({"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}, "refusal"),
        ({"message": {"content": "ha"}, "finish_reason": "content_filter"}, "content_filter"),
    ],
)
def test_no_content_is_an_empty_reply(choice: dict[str, Any], finish_reason: str) -> None:
    reply = read({"choices": [choice]}).reply
    assert (reply.content, reply.finish_reason) == ("", finish_reason)


def test_the_chosen_token_is_among_the_alternatives() -> None:
    tokens = [token("1", -3.0, ("0", -0.1), ("2", -2.5)), token("0", -0.2, ("0", -0.2))]
    reply = read(answered("10", tokens)).reply
    assert [t.alternatives for t in reply.tokens] == [
        (("1", -3.0), ("0", -0.1), ("2", -2.5)),
        (("0", -0.2),),
    ]


@pytest.mark.parametrize(
    ("texts", "content", "kept"),
    [
        (["a", "b", "<end>"], "ab", ["a", "b"]),
        ([" a", "b"], "ab", ["a", "b"]),
        (["<start>", " ", "a", "b\n"], "ab", ["a", "b"]),
        (["x", "y"], "ab", []),
    ],
)
def test_joined_texts_of_tokens_are_the_content(
    texts: list[str], content: str, kept: list[str]
) -> None:
    reply = read(answered(content, [token(text, -1.0) for text in texts])).reply
    assert [t.text for t in reply.tokens] == kept
    assert "".join(kept) in (content, "")


@pytest.mark.parametrize("draft", ["1", "Perhaps 1 or 1?", '{"1": 1}</think>1 1', ""])
def test_log_probabilities_are_those_of_the_answer_not_of_a_draft(draft: str) -> None:
    tokens = [token(text, -5.0) for text in (*draft, "</think>")]
    tokens += [token("1", -0.25), token("<|im_end|>", -0.1)]
    (found,) = read(answered("1", tokens)).reply.tokens
    assert found.alternatives == (("1", -0.25),)


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": "a", "reasoning_content": "thought"}, "a"),
        ({"content": "thought\n\na", "reasoning_content": "thought"}, "a"),
        ({"content": "\nthought\na", "reasoning": " thought\n"}, "a"),
        ({"content": "thought</think>a", "thinking": "thought"}, "</think>a"),
        ({"content": "thought", "reasoning": "thought"}, ""),
        ({"content": "thoughtful", "reasoning": "thought"}, "thoughtful"),
        ({"content": "a", "reasoning": {"text": "a"}}, "a"),
        ({"content": None, "reasoning_content": "1: 0"}, ""),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "thought"}]},
                    {"type": "reasoning", "text": "thought"},
                    {"type": "text", "text": "thought", "thought": True},
                    {"type": "text", "text": "a"},
                ]
            },
            "a",
        ),
        ({"content": [{"type": "output_text", "text": "a"}, {"text": "b"}]}, "ab"),
        ({"content": {"1": 0}}, '{"1": 0}'),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "a"}}]}, "a"),
        ({"content": "a", "tool_calls": [{"function": {"name": "f", "arguments": "b"}}]}, "a"),
        ({"content": "", "tool_calls": [{"function": {"arguments": {"1": 0}}}]}, '{"1": 0}'),
        ({"content": "", "tool_calls": [{"function": {"arguments": "a"}}] * 2}, ""),
        ({"content": "", "tool_calls": [{"function": None}]}, ""),
    ],
)
def test_reasoning_separated_by_the_server_is_not_content(
    message: dict[str, Any], content: str
) -> None:
    assert (
        read({"choices": [{"message": message, "finish_reason": "stop"}]}).reply.content == content
    )


def test_a_character_of_two_tokens_is_joined() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    tokens = [token("�", -1.0, raw=list(first)), token("�", -1.0, raw=list(second))]
    tokens = [token("a", -1.0, raw=[97]), *tokens, token("!", -1.0, raw=[33])]
    reply = read(answered("aé!", tokens)).reply
    assert [t.text for t in reply.tokens] == ["a", "", "é", "!"]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_temporary_failures_may_be_retried(status: int) -> None:
    with pytest.raises(AttemptError, match=f"{status}: busy") as caught:
        read({"error": {"message": "busy"}}, status)
    assert caught.value.throttled == (status == 429)


@pytest.mark.parametrize("body", [b"", b'{"choices": [{"mess', {"choices": []}, b"<html>", []])
def test_a_200_without_a_reply_may_be_retried(body: Any) -> None:
    with pytest.raises(AttemptError):
        read(body)


def test_the_error_in_a_200_counts_like_its_code() -> None:
    with pytest.raises(AttemptError) as caught:
        read({"error": {"message": "slow down", "code": 429}})
    assert caught.value.throttled
    with pytest.raises(RefusedError, match="api_key_env"):
        read({"error": {"message": "who are you", "code": 401}})


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_becomes_a_pause(status: int) -> None:
    with pytest.raises(AttemptError) as caught:
        read({}, status, "1.5")
    assert caught.value.pause == 1.5


def test_retry_after_may_be_a_date_in_the_future_or_past() -> None:
    now = datetime.now(UTC)
    seconds = retry_after_seconds(format_datetime(now + timedelta(seconds=30), usegmt=True))
    assert seconds is not None
    assert 28 < seconds <= 30
    assert retry_after_seconds(format_datetime(now - timedelta(hours=1), usegmt=True)) == 0
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds(None) is None
    assert retry_after_seconds("86400") == 600


@pytest.mark.parametrize(
    ("status", "error", "named"),
    [
        (401, {"message": "bad key"}, "api_key_env: small at http://there/v1 refuses .* A_KEY"),
        (402, {"message": "pay"}, "no credit left"),
        (429, {"message": "quota", "code": "insufficient_quota"}, "no credit left"),
        (404, {"message": "The model `small` does not exist"}, "model: .* know 'small'"),
        (400, {"message": "small is not a valid model ID"}, "model: .* know 'small'"),
        (404, {"message": "Not Found"}, "base_url: no chat endpoint at http://there/v1/chat"),
        (400, {"message": "maximum context length is 9"}, "windows_per_prompt, shown_windows"),
        (400, {"message": "x", "code": "context_length_exceeded"}, "windows_per_prompt"),
        (
            400,
            {"message": "the request exceeds the available context size", "type": "any"},
            "windows_per_prompt",
        ),
        (413, {"message": "too big"}, "windows_per_prompt"),
        (422, {"message": "strange field\nmore"}, r"refuses a request \(422: strange field\)"),
        (400, {"message": "Unsupported parameter", "param": "seed"}, r"parameter \(seed\)\)"),
        (400, {"message": "API key not valid."}, "api_key_env: small .* refuses the key in A_KEY"),
        (400, {"message": "Your credit balance is too low."}, "no credit left"),
        (400, {"message": "The model `small` has been decommissioned"}, "model: .* know 'small'"),
    ],
)
def test_errors_the_user_can_fix_are_one_line_that_says_how(
    status: int, error: dict[str, Any], named: str
) -> None:
    with pytest.raises(RefusedError, match=named) as caught:
        read({"error": error}, status)
    assert "\n" not in str(caught.value)
    with pytest.raises(RefusedError, match=named):
        read([{"error": error}], status)  # as Gemini wraps errors


def test_a_reply_in_a_stream_is_refused_and_not_paid_again() -> None:
    with pytest.raises(RefusedError, match=r"extra_body: .*stream: false"):
        read(b'data: {"choices": [{"delta": {"content": "1"}}]}\n\ndata: [DONE]\n\n')


def test_a_filtered_prompt_is_an_empty_reply() -> None:
    valid = read({"error": {"message": "no", "code": "content_filter"}}, 400)
    assert (valid.reply.content, valid.reply.finish_reason) == ("", "content_filter")


def test_alternatives_without_a_valid_number_are_skipped() -> None:
    odd = {"token": "1", "logprob": -0.5, "top_logprobs": [{"token": "0", "logprob": None}, 7]}
    assert read(answered("1", [odd])).reply.tokens[0].alternatives == (("1", -0.5),)


def test_half_a_surrogate_pair_in_an_answer_is_read() -> None:
    content = b'{"choices": [{"message": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}'
    assert read(content).reply.content == "a\ufffd"
