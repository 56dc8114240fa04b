"""Turns an endpoint's response into a reply, a failed attempt, or an error the user can fix."""

from __future__ import annotations

import codecs
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from nullsae.autointerp.llm.messages import AnswerToken, Reply, logprob, parse_json, without_halves
from nullsae.autointerp.llm.refusals import TEMPLATE, Asked, RefusedError, mend, shortened
from nullsae.autointerp.llm.secrets import NO_SECRETS, SHORTEST_SECRET, Secrets

# Kept of the endpoint's own text about an error.
MOST_SAID = 4000
# The longest reply for a number of tokens; the rest is dropped. Runs of spaces are the longest
# tokens.
MOST_CHARACTERS_PER_TOKEN, SPARE_CHARACTERS = 64, 20_000
# Alternatives of a token, and characters of one: no endpoint gives more.
MOST_ALTERNATIVES, MOST_TOKEN_CHARACTERS = 32, 200
FINISH_REASON = re.compile(r"[a-z][a-z_-]{0,39}")
# A longer Retry-After is reduced to this: a job that waits for hours helps nobody.
MAX_PAUSE_SECONDS = 600.0
# Reasons that gateways forward from others than OpenAI: max_output_tokens, model_length, ...
CUT = re.compile(r"length|max_|token_limit|truncated|incomplete|context_window", re.IGNORECASE)
# OpenAI's answer when the limit was spent on reasoning.
LIMIT_REACHED = re.compile(r"max_tokens or model output limit was reached", re.IGNORECASE)
# Server-sent events.
STREAM = re.compile(r"\s*(?:data|event|id|:)[ :]")
# Fields of a message, and types of parts of its content, that contain reasoning.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)
FILTERED = re.compile(
    r"content_filter|content_policy|content management policy|moderation|flagged", re.IGNORECASE
)


@dataclass(frozen=True)
class Answer:
    """The response to a request, whatever its status."""

    status: int
    retry_after: str | None
    content: bytes
    """With the API key blanked out, in case the endpoint repeats it."""


@dataclass(frozen=True)
class Valid:
    """A reply with the token counts of the endpoint."""

    reply: Reply
    prompt_tokens: int | None
    completion_tokens: int | None
    is_free: bool = False
    """Nothing was answered, and nothing is billed."""


class AttemptError(Exception):
    """No valid reply this time; another attempt may succeed."""

    def __init__(
        self,
        text: str,
        *,
        throttled: bool = False,
        pause: float | None = None,
        may_be_billed: bool = False,
    ) -> None:
        super().__init__(text)
        self.may_be_billed = may_be_billed
        """Whether the model may have answered anyway, and the answer be billed."""
        self.throttled = throttled
        self.pause = pause
        """Seconds during which the endpoint wants no requests."""


def read_answer(
    answer: Answer,
    asked: Asked,
    secrets: Secrets = NO_SECRETS,
    max_completion_tokens: int | None = None,
) -> Valid:
    """Return the reply in a response, without secrets, cut to what the tokens allow.

    Raises:
        AttemptError: a 408, 409, 425, 429 or 5xx, truncated JSON, or a response without choices.
        RefusedError: anything else that is not a reply.
    """
    try:
        value = parse_json(answer.content)
    except ValueError:
        value = None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # Gemini's errors
    if answer.status == 200 and isinstance(value, dict):
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            most = max_completion_tokens
            if most is not None:
                most = MOST_CHARACTERS_PER_TOKEN * most + SPARE_CHARACTERS
            return _valid(choices[0], value.get("usage"), secrets, most)
    status, said = answer.status, secrets.blank(_said(value, answer.content))
    if status == 200 and STREAM.match(said):
        raise RefusedError(
            f"extra_body: {asked} streams its replies, which are not read here; set extra_body: "
            f"{{stream: false}}, or take an endpoint that can do without",
            status=status,
            said=said,
        )
    if status == 200:
        # Some gateways wrap the error of their upstream.
        error = value.get("error") if isinstance(value, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if not (isinstance(code, int) and 400 <= code < 600):
            text = "200 without a reply: " + (shortened(said) or "an empty body")
            raise AttemptError(text, may_be_billed=True)
        status = code
    if status in (500, 501) and TEMPLATE.search(said):
        status = 400
    pause = retry_after_seconds(answer.retry_after) if status in (429, 503) else None
    if status == 429 and "insufficient_quota" not in _codes(value):
        raise AttemptError(f"429: {shortened(said)}", throttled=True, pause=pause)
    if status == 400 and LIMIT_REACHED.search(said):
        return Valid(Reply("", (), "length"), None, None)
    # 501 means that the server will never be able to do this.
    if (status >= 500 and status != 501) or status in (408, 409, 425):
        # A gateway's timeout: its upstream may have answered.
        billed = status in (408, 504, 524)
        raise AttemptError(f"{status}: {shortened(said)}", pause=pause, may_be_billed=billed)
    if status in (400, 403, 422) and FILTERED.search(_codes(value) + " " + said):
        return Valid(Reply("", (), "content_filter"), 0, 0, is_free=True)
    raise RefusedError(mend(status, said, _codes(value), asked), status=status, said=said)


def retry_after_seconds(header: str | None) -> float | None:
    """Return the seconds in a Retry-After: a number or an HTTP date (RFC 9110, 10.2.3), or None."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except (ValueError, TypeError, OverflowError):
            return None
        try:
            until = until.replace(tzinfo=until.tzinfo or UTC)
            seconds = (until - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_PAUSE_SECONDS) if math.isfinite(seconds) else None


def _said(value: Any, content: bytes) -> str:
    """Return the endpoint's own text about an error, shortened."""
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        parts = [error.get("message") or error.get("detail") or error.get("msg")]
        param = error.get("param")
        if isinstance(param, str) and param not in str(parts[0]):
            parts.append(f"({param})")
        metadata = error.get("metadata")
        if isinstance(metadata, dict):
            parts.append(metadata.get("raw"))
        said = " ".join(_text(part) for part in parts if part)
        return (said or _text(error))[:MOST_SAID]
    if isinstance(error, str):
        return without_halves(error[:MOST_SAID])
    return content[:MOST_SAID].decode(errors="replace")


def _text(value: Any) -> str:
    """Return a JSON value as text; empty if it cannot be written, such as infinite numbers."""
    if isinstance(value, str):
        return without_halves(value)
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return ""


def _codes(value: Any) -> str:
    error = value.get("error", value) if isinstance(value, dict) else None
    found = error if isinstance(error, dict) else {}
    return " ".join(_text(found[name])[:200] for name in ("code", "type") if found.get(name))


def _valid(choice: dict[str, Any], usage: Any, secrets: Secrets, most: int | None) -> Valid:
    """Return a reply of at most `most` characters."""
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish_reason = choice.get("finish_reason") or "stop"
    if not (isinstance(finish_reason, str) and FINISH_REASON.fullmatch(finish_reason.lower())):
        finish_reason = "other"
    if CUT.search(finish_reason):
        finish_reason = "length"
    if finish_reason == "error" or choice.get("error"):
        text = secrets.blank(_said(choice, b""))
        raise AttemptError(
            f"200 with an error in its choice: {shortened(text)}", may_be_billed=True
        )
    content = _content(message)
    if message.get("refusal"):
        content, finish_reason = "", "refusal"
    if finish_reason == "content_filter":
        content = ""
    whole = content[:most]
    bare = secrets.blank(whole)
    # Tokens spell the original text, which may differ from the stored one.
    tokens = () if bare != content else _tokens(choice.get("logprobs"), content, secrets)
    reply = Reply(without_halves(bare), tokens, secrets.blank(finish_reason))
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = (counts.get(f"{kind}_tokens") for kind in ("prompt", "completion"))
    return Valid(
        reply,
        prompt if type(prompt) is int else None,
        completion if type(completion) is int else None,
    )


def _content(message: dict[str, Any]) -> str:
    """Return the content of a message, without the reasoning that the server has separated.

    Reasoning comes in its own field or as parts of the content, and some servers repeat the field
    at the beginning of the content. Some turn JSON into a tool's call, or into an object.
    """
    content = message.get("content") or _arguments(message)
    if isinstance(content, dict):
        content = _text(content)
    if isinstance(content, list):
        dicts = [part for part in content if isinstance(part, dict) and not part.get("thought")]
        parts = (p.get("text") for p in dicts if not THOUGHT.search(_text(p.get("type"))[:100]))
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        return ""
    for name in REASONING_FIELDS:
        said = message.get(name)
        if isinstance(said, str) and said.strip():
            start = len(content) - len(content.lstrip())
            stop = start + len(said.strip())
            whole = content[start:stop] == said.strip()
            if whole and (stop == len(content) or content[stop] in "\r\n<["):
                return content[stop:].lstrip()
    return content


def _arguments(message: dict[str, Any]) -> Any:
    """Return the arguments of a message's only tool call, or None."""
    calls = message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and len(calls) == 1 else None
    function = call.get("function") if isinstance(call, dict) else None
    return function.get("arguments") if isinstance(function, dict) else None


def _tokens(logprobs: Any, content: str, secrets: Secrets) -> tuple[AnswerToken, ...]:
    """Return the tokens of the content, or none if they do not spell it."""
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not content or not isinstance(entries, list) or not entries:
        return ()
    if not all(isinstance(e, dict) and isinstance(e.get("token"), str) for e in entries):
        return ()
    texts = [entry["token"] for entry in entries]
    if content not in "".join(texts):
        texts = _decoded(entries)
    # An end token may follow the content, and a stripped space precede it. Tokens of the reasoning
    # come first, and the reasoning may contain a draft of the same words.
    start = "".join(texts).rfind(content)
    if start < 0:
        return ()
    tokens, position, end = [], 0, start + len(content)
    for text, entry in zip(texts, entries, strict=True):
        first, last = max(start - position, 0), min(end - position, len(text))
        if first < last or (start < position < end and not text):
            own = without_halves(text[first:last])
            tokens.append(AnswerToken(own, _alternatives(entry, secrets)))
        position += len(text)
    return tuple(tokens)


def _decoded(entries: list[dict[str, Any]]) -> list[str]:
    """Return texts by tokens' bytes; a character of several tokens belongs to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = []
    for entry in entries:
        raw = entry.get("bytes")
        if raw is None:
            texts.append(entry["token"])
        elif isinstance(raw, list) and all(type(b) is int and 0 <= b < 256 for b in raw):
            texts.append(decoder.decode(bytes(raw)))
        else:
            # Not valid bytes: a number n, for example, would become n zeros.
            return [entry["token"] for entry in entries]
    return texts


def _alternatives(entry: dict[str, Any], secrets: Secrets) -> tuple[tuple[str, float], ...]:
    """Return the alternatives of a token that have valid log-probabilities."""
    top = entry.get("top_logprobs")
    others = [other for other in (top if isinstance(top, list) else ()) if isinstance(other, dict)]
    pairs = [
        (_alternative(other["token"], secrets), value)
        for other in others[:MOST_ALTERNATIVES]
        if isinstance(other.get("token"), str)
        and (value := logprob(other.get("logprob"))) is not None
    ]
    chosen, text = logprob(entry.get("logprob")), _alternative(entry["token"], secrets)
    if chosen is not None and text not in (other for other, _ in pairs):
        pairs.insert(0, (text, chosen))
    return tuple(pairs)


def _alternative(text: str, secrets: Secrets) -> str:
    text = without_halves(text[:MOST_TOKEN_CHARACTERS])
    # Most tokens are too short to contain a secret, and there are many.
    return text if len(text) < SHORTEST_SECRET else secrets.blank(text)
