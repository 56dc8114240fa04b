"""What a language model is asked and what it replies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json


@dataclass(frozen=True)
class Request:
    """One question to a chat model."""

    messages: tuple[Mapping[str, str], ...]
    """Each with `role` and `content`."""
    max_completion_tokens: int
    schema: Mapping[str, Any] | None = None
    """JSON schema of the answer; sent where the endpoint supports it."""
    logprobs: bool = False
    """Whether log-probabilities are wanted; asked for where the endpoint gives them."""


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer and what the model might have said in its place."""

    text: str
    alternatives: tuple[tuple[str, float], ...]
    """(text, natural log probability) of the likeliest tokens, the chosen one among them."""


@dataclass(frozen=True)
class Reply:
    """What a model said."""

    content: str
    """Empty where it said nothing, refusals among it."""
    tokens: tuple[AnswerToken, ...]
    """Empty without log-probabilities; their texts joined are the content."""
    finish_reason: str


def to_plain(reply: Reply) -> list[Any]:
    """A reply as lists that JSON can hold; `from_plain` is its inverse, bit for bit."""
    tokens = [[token.text, token.alternatives] for token in reply.tokens]
    return [reply.content, reply.finish_reason, tokens]


def from_plain(value: list[Any]) -> Reply:
    """The reply that `to_plain` took apart."""
    content, finish_reason, tokens = value
    return Reply(
        content=content,
        tokens=tuple(
            AnswerToken(text, tuple((other, logprob) for other, logprob in alternatives))
            for text, alternatives in tokens
        ),
        finish_reason=finish_reason,
    )


def parse_json(text: bytes | str) -> Any:
    """The value of JSON text, by pydantic's parser: with log-probabilities, reading is most of what
    a reply costs, and this takes a half to a third of the standard library's time.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return from_json(text)
    except ValueError:
        # The other parser also takes halves of surrogate pairs, which some servers write.
        return json.loads(text)
