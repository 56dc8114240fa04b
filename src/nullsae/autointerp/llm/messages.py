"""What a language model is asked, what it replies, and what that has cost."""

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
    """JSON schema of the answer; sent where the endpoint supports it."""
    logprobs: bool = False
    """Whether log-probabilities are wanted; asked for where the endpoint gives them."""
    may_be_cut: bool = False
    """Whether a cut answer will do: it is not asked for again with more tokens."""


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

    @property
    def is_cut(self) -> bool:
        """Whether it ended where no more tokens were allowed."""
        return self.finish_reason == "length"


@dataclass
class Usage:
    """Counts of one run, probes included."""

    calls: int = 0
    """Answered, and paid by this run: so are the tokens and `cost_usd`."""
    cached_calls: int = 0
    """Answered by the cache, or by the same request of this run."""
    attempts_failed: int = 0
    """Attempts that brought no valid reply, whether tried again or given up."""
    failed: int = 0
    """Requests that never got a valid reply, or only cut ones."""
    estimated: int = 0
    """Calls whose tokens the endpoint did not count, or not as can be true."""
    cut: int = 0
    """Replies that were cut where no more tokens were allowed, and asked for again with more."""
    empty: int = 0
    """Requests whose reply says nothing."""
    lost_usd: float = 0.0
    """What attempts without a reply may cost at most: those that timed out, above all."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    cached_cost_usd: float = 0.0
    """What the replies of `cached_calls` cost when they were paid."""


def object_schema(values: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """JSON schema of an object that has all these keys, each with one of its whole numbers."""
    return {
        "type": "object",
        "properties": {key: {"type": "integer", "enum": [*some]} for key, some in values.items()},
        "required": [*values],
        "additionalProperties": False,
    }


def cost_usd(price: Price | None, prompt_tokens: float, completion_tokens: float) -> float:
    """Money for that many tokens; nothing for a model without a price."""
    if price is None:
        return 0.0
    return (
        prompt_tokens * price.input_usd_per_million_tokens
        + completion_tokens * price.output_usd_per_million_tokens
    ) / 1e6


def parse_json(text: bytes | str) -> Any:
    """The value of JSON text; a ValueError if it is none, or deeper than anybody nests.

    By pydantic's parser: with log-probabilities, reading is most of what a reply costs, and this
    takes a half to a third of the standard library's time.
    """
    try:
        return from_json(text)
    except ValueError:
        pass
    try:
        # The other parser also takes halves of surrogate pairs, which some servers write.
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def without_halves(text: str) -> str:
    """A text with each half of a surrogate pair, which no file can hold, replaced by U+FFFD."""
    return text if text.isascii() else _HALF.sub("\ufffd", text)


def logprob(value: Any) -> float | None:
    """A natural log probability as a finite float <= 0; None for what is none.

    Servers that round may give a little more than 0.
    """
    if type(value) not in (int, float) or not -MOST_LOGPROB < value < ROUNDING:
        return None
    return min(float(value), 0.0)
