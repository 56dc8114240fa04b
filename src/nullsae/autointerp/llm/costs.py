"""What asking has cost: calls, tokens, money."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae.config.llm import Price

# A token of a prompt is at least this long on average, so that an estimate made with it is a bound.
BYTES_PER_TOKEN = 3


@dataclass
class Usage:
    """Counts of one run. `calls` + `cached_calls` + `failed` are all requests asked for, beside
    the few that find out what an endpoint can do.
    """

    calls: int = 0
    """Answered, and paid by this run."""
    cached_calls: int = 0
    """Answered by the cache, or by the same request of this run."""
    attempts_failed: int = 0
    """Attempts that brought no valid reply, whether tried again or given up."""
    failed: int = 0
    """Requests that never got a valid reply."""
    prompt_tokens: int = 0
    """Of `calls`."""
    completion_tokens: int = 0
    """Of `calls`."""
    cost_usd: float = 0.0
    """Of `calls`."""
    cached_cost_usd: float = 0.0
    """What the replies of `cached_calls` cost when they were paid."""


def cost_usd(price: Price | None, prompt_tokens: float, completion_tokens: float) -> float:
    """Money for that many tokens; nothing for a model without a price."""
    if price is None:
        return 0.0
    return (
        prompt_tokens * price.input_usd_per_million_tokens
        + completion_tokens * price.output_usd_per_million_tokens
    ) / 1e6


def worst_cost_usd(price: Price | None, n_bytes: int, max_completion_tokens: int) -> float:
    """What a request of `n_bytes` may cost if its answer gets as long as it may."""
    return cost_usd(price, -(-n_bytes // BYTES_PER_TOKEN), max_completion_tokens)
