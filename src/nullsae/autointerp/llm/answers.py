"""From what an endpoint sent back to a reply, a failed attempt, or what the user can mend."""

from __future__ import annotations

import codecs
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from nullsae.autointerp.llm.messages import AnswerToken, Reply, parse_json
from nullsae.core.errors import UserError

SHOWN_CHARACTERS = 300
# A Retry-After beyond this is taken as this: a job that stands still for hours helps nobody.
MAX_PAUSE_SECONDS = 600.0
CONTEXT = re.compile(
    r"context.{0,9}(length|size|window)|maximum context|max_model_len|"
    r"(prompt|input|request).{0,20} too (long|large|many)|too many (input |prompt )?tokens",
    re.IGNORECASE,
)
NO_MODEL = re.compile(
    r"model.{0,120}(not? (exist|found|available|a valid)|does not|unknown|invalid|unsupported)|"
    r"(unknown|invalid|no such|unsupported|not a valid) model",
    re.IGNORECASE,
)
# Servers fail with a 500 where a chat template does not take the roles of the messages.
TEMPLATE = re.compile(
    r"jinja|chat.?template|template.{0,9}error|system (role|message|prompt)|roles? must alternate|"
    r"raise_exception|(only|supported).{0,40} roles?\b",
    re.IGNORECASE,
)
OTHER_FIELD = re.compile(
    r"(parameter|argument|field|property|input)s?\b(?!.{0,30}(role|messages\W{1,2}\d))",
    re.IGNORECASE,
)
# Fields of a message, and types of parts of its content, that hold reasoning.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)
FILTERED = re.compile(
    r"content_filter|content_policy|content management policy|moderation|flagged", re.IGNORECASE
)


@dataclass(frozen=True)
class Answer:
    """What came back for a request, whatever its status."""

    status: int
    retry_after: str | None
    content: bytes
    """With the API key blanked out, should the endpoint repeat it."""


@dataclass(frozen=True)
class Valid:
    """A reply with the tokens that the endpoint counted."""

    reply: Reply
    prompt_tokens: int | None
    completion_tokens: int | None


class AttemptError(Exception):
    """No valid reply this time; another attempt may bring one."""

    def __init__(self, text: str, *, throttled: bool = False, pause: float | None = None) -> None:
        super().__init__(text)
        self.throttled = throttled
        self.pause = pause
        """Seconds in which the endpoint wants no requests."""


class RefusedError(UserError):
    """The endpoint will not answer a request like this one, however often it is asked."""

    def __init__(self, text: str, *, status: int, said: str) -> None:
        super().__init__(text)
        self.status = status
        self.said = said
        """The endpoint's own words, whole."""


@dataclass(frozen=True)
class Asked:
    """Who was asked, for the texts of errors."""

    model: str
    address: str
    key_variable: str | None
    """The environment variable whose key was sent; None if none was."""

    def __str__(self) -> str:
        return f"{self.model} at {self.address}"


def read_answer(answer: Answer, asked: Asked) -> Valid:
    """The reply in what came back.

    Raises:
        AttemptError: a 408, 409, 425, 429 or 5xx, JSON that is cut, an answer without choices.
        RefusedError: anything else that is no reply.
    """
    try:
        value = parse_json(answer.content)
    except ValueError:
        value = None
    if answer.status == 200 and isinstance(value, dict):
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            return _valid(choices[0], value.get("usage"))
    status, said = answer.status, _said(value, answer.content)
    if status == 200:
        # Some gateways wrap the error of whom they asked.
        error = value.get("error") if isinstance(value, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if not (isinstance(code, int) and 400 <= code < 600):
            raise AttemptError("200 without a reply: " + (shortened(said) or "an empty body"))
        status = code
    if status in (500, 501) and TEMPLATE.search(said):
        status = 400
    pause = retry_after_seconds(answer.retry_after) if status in (429, 503) else None
    if status == 429 and "insufficient_quota" not in _codes(value):
        raise AttemptError(f"429: {shortened(said)}", throttled=True, pause=pause)
    if status >= 500 or status in (408, 409, 425):
        raise AttemptError(f"{status}: {shortened(said)}", pause=pause)
    if status in (400, 403, 422) and FILTERED.search(_codes(value) + " " + said):
        return Valid(Reply("", (), "content_filter"), 0, 0)
    raise RefusedError(_mend(status, said, _codes(value), asked), status=status, said=said)


def retry_after_seconds(header: str | None) -> float | None:
    """Seconds by a Retry-After header: a number or an HTTP date (RFC 9110, 10.2.3), or None."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_PAUSE_SECONDS) if math.isfinite(seconds) else None


def may_be_of_roles(refusal: RefusedError) -> bool:
    """Whether a refusal may be of a template that does not take system messages.

    Templates say so in words of their own: any refusal counts that names nothing else.
    """
    other = CONTEXT.search(refusal.said) or OTHER_FIELD.search(refusal.said)
    return refusal.status in (400, 422) and (not other or TEMPLATE.search(refusal.said) is not None)


def shortened(text: str) -> str:
    """The first line of a text, cut where it gets long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + " ..."


def _mend(status: int, said: str, codes: str, asked: Asked) -> str:
    """One line that says what the user can do."""
    text = shortened(said).rstrip(".") or "no text"
    if status in (401, 403):
        if asked.key_variable is None:
            return f"api_key_env: {asked} wants a key, and none was sent ({status}: {text})"
        return (
            f"api_key_env: {asked} refuses the key in {asked.key_variable} ({status}: {text}); "
            f"put one there that is valid and may use this model"
        )
    if status in (402, 429):
        return f"{asked}: the account has no credit left ({status}: {text})"
    if "model_not_found" in codes or (status in (400, 404, 422) and NO_MODEL.search(said)):
        return f"model: {asked.address} does not know {asked.model!r} ({status}: {text})"
    if status in (404, 405) or 300 <= status < 400:
        return (
            f"base_url: no chat endpoint at {asked.address}/chat/completions ({status}: {text}); "
            f"most addresses end in /v1"
        )
    if "context_length" in codes or status == 413 or CONTEXT.search(said):
        return (
            f"windows_per_prompt, shown_windows: a prompt is longer than {asked} takes "
            f"({status}: {text}); set the scorer's windows_per_prompt or the explainer's "
            f"shown_windows lower, or give the server a longer context"
        )
    return f"{asked} refuses a request ({status}: {text})"


def _said(value: Any, content: bytes) -> str:
    """The endpoint's own words about an error."""
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        parts = [error.get("message") or error.get("detail") or error.get("msg")]
        metadata = error.get("metadata")
        if isinstance(metadata, dict):
            parts.append(metadata.get("raw"))
        said = " ".join(str(part) for part in parts if part)
        if said:
            return said
        error = json.dumps(error)
    if isinstance(error, str):
        return error
    return content[:2000].decode(errors="replace")


def _codes(value: Any) -> str:
    error = value.get("error", value) if isinstance(value, dict) else None
    found = error if isinstance(error, dict) else {}
    return " ".join(str(found[name]) for name in ("code", "type") if found.get(name))


def _valid(choice: dict[str, Any], usage: Any) -> Valid:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish_reason = str(choice.get("finish_reason") or "stop")
    if finish_reason == "error" or choice.get("error"):
        raise AttemptError("200 with an error in its choice: " + shortened(_said(choice, b"")))
    content = _content(message)
    if message.get("refusal"):
        content, finish_reason = "", "refusal"
    if finish_reason == "content_filter":
        content = ""
    reply = Reply(content, _tokens(choice.get("logprobs"), content), finish_reason)
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = (counts.get(f"{kind}_tokens") for kind in ("prompt", "completion"))
    return Valid(
        reply,
        prompt if type(prompt) is int else None,
        completion if type(completion) is int else None,
    )


def _content(message: dict[str, Any]) -> str:
    """What a message says, without the reasoning that the server has told from it.

    That comes in a field of its own or as parts of the content, and some servers repeat the field
    at the beginning of the content.
    """
    content = message.get("content")
    if isinstance(content, list):
        parts = (
            part.get("text")
            for part in content
            if isinstance(part, dict) and not THOUGHT.search(str(part.get("type")))
        )
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


def _tokens(logprobs: Any, content: str) -> tuple[AnswerToken, ...]:
    """The tokens of the content; none where those that came do not make it up."""
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not content or not isinstance(entries, list) or not entries:
        return ()
    if not all(isinstance(e, dict) and isinstance(e.get("token"), str) for e in entries):
        return ()
    texts = [entry["token"] for entry in entries]
    if content not in "".join(texts):
        texts = _decoded(entries)
    # An end token may follow the content, and a space that was stripped precede it. Tokens of the
    # reasoning come before, and the reasoning may hold a draft of the same words.
    start = "".join(texts).rfind(content)
    if start < 0:
        return ()
    tokens, position, end = [], 0, start + len(content)
    for text, entry in zip(texts, entries, strict=True):
        first, last = max(start - position, 0), min(end - position, len(text))
        if first < last or (start < position < end and not text):
            tokens.append(AnswerToken(text[first:last], _alternatives(entry)))
        position += len(text)
    return tuple(tokens)


def _decoded(entries: list[dict[str, Any]]) -> list[str]:
    """Texts by the tokens' bytes: a character of several tokens belongs to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = []
    for entry in entries:
        raw = entry.get("bytes")
        try:
            texts.append(decoder.decode(bytes(raw)) if raw is not None else entry["token"])
        except (TypeError, ValueError):
            return [entry["token"] for entry in entries]
    return texts


def _alternatives(entry: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    top = entry.get("top_logprobs")
    pairs = [
        (other["token"], float(other["logprob"]))
        for other in (top if isinstance(top, list) else ())
        if isinstance(other, dict)
        and isinstance(other.get("token"), str)
        and isinstance(other.get("logprob"), int | float)
    ]
    chosen = entry.get("logprob")
    if isinstance(chosen, int | float) and entry["token"] not in (text for text, _ in pairs):
        pairs.insert(0, (entry["token"], float(chosen)))
    return tuple(pairs)
