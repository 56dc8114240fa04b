"""Questions to a language model, its replies, and their cost."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from nullsae.config.llm import Price

# Some servers write -9999 for a probability of 0.
MOST_LOGPROB, ROUNDING = 1e300, 1e-3
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Request:
    """One question to a chat model."""

    messages: tuple[Mapping[str, str], ...]
    """Each with `role` and `content`."""
    max_completion_tokens: int
    schema: Mapping[str, Any] | None = None
    """JSON schema of the answer; sent if the endpoint supports it."""
    logprobs: bool = False
    """Whether log-probabilities are wanted; requested if the endpoint supports them."""
    may_be_cut: bool = False
    """Whether a truncated answer is enough, so that it is not requested again with more tokens."""


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer, and the model's alternatives."""

    text: str
    alternatives: tuple[tuple[str, float], ...]
    """(text, natural log probability) of the likeliest tokens, the chosen one among them."""


@dataclass(frozen=True)
class Reply:
    """A model's answer."""

    content: str
    """Empty if it said nothing or refused."""
    tokens: tuple[AnswerToken, ...]
    """Empty without log-probabilities; otherwise their joined texts are the content."""
    finish_reason: str

    @property
    def is_cut(self) -> bool:
        """Whether it was truncated by the token limit."""
        return self.finish_reason == "length"


@dataclass
class Usage:
    """Counts of one run, including probes."""

    calls: int = 0
    """Answered and paid by this run, as are the tokens and `cost_usd`."""
    cached_calls: int = 0
    """Answered by the cache, or by the same request of this run."""
    attempts_failed: int = 0
    """Attempts without a valid reply, whether repeated or given up."""
    failed: int = 0
    """Requests that never got a valid reply, or only truncated ones."""
    estimated: int = 0
    """Calls whose tokens the endpoint did not count, or not plausibly."""
    cut: int = 0
    """Replies that were truncated by the token limit, and requested again with more."""
    empty: int = 0
    """Requests with an empty reply."""
    lost_usd: float = 0.0
    """The most that attempts without a reply may cost, above all those that timed out."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    cached_cost_usd: float = 0.0
    """The cost of the replies of `cached_calls` when they were paid."""


def object_schema(values: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the JSON schema of an object with these keys, each with one of its whole numbers."""
    return {
        "type": "object",
        "properties": {key: {"type": "integer", "enum": [*some]} for key, some in values.items()},
        "required": [*values],
        "additionalProperties": False,
    }


def cost_usd(price: Price | None, prompt_tokens: float, completion_tokens: float) -> float:
    """Return the cost of this many tokens; 0 for a model without a price."""
    if price is None:
        return 0.0
    return (
        prompt_tokens * price.input_usd_per_million_tokens
        + completion_tokens * price.output_usd_per_million_tokens
    ) / 1e6


def parse_json(text: bytes | str) -> Any:
    """Parse JSON text; raise a ValueError if it is invalid or nested too deeply.

    Uses pydantic's parser: with log-probabilities, parsing is most of the work per reply, and this
    takes a half to a third of the standard library's time.
    """
    try:
        return from_json(text)
    except ValueError:
        pass
    try:
        # The standard parser also accepts halves of surrogate pairs, which some servers write.
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def without_halves(text: str) -> str:
    """Replace halves of surrogate pairs, which no file can contain, by U+FFFD."""
    return text if text.isascii() else _HALF.sub("\ufffd", text)


def logprob(value: Any) -> float | None:
    """Return a natural log probability as a finite float <= 0; None if invalid.

    Servers that round may give slightly more than 0.
    """
    if type(value) not in (int, float) or not -MOST_LOGPROB < value < ROUNDING:
        return None
    return min(float(value), 0.0)
