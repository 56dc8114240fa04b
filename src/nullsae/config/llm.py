"""Config key `llm`: how requests are sent to endpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from nullsae.config.section import Section


class Price(Section):
    """Price of a model."""

    input_usd_per_million_tokens: NonNegativeFloat
    output_usd_per_million_tokens: NonNegativeFloat
    batch_share: NonNegativeFloat = 0.5
    """Price of the same tokens in a batch (`llm.batch`), as a share of these prices."""


class Llm(Section):
    """How requests are sent. Nothing here changes an answer, so edits run nothing again."""

    concurrency: PositiveInt = 32
    """Concurrent requests of one job; fewer while the endpoint answers 429."""
    timeout_seconds: PositiveFloat = 120.0
    """Timeout per attempt."""
    max_attempts: PositiveInt = 8
    """Attempts per request, with growing waits between them, before it counts as failed."""
    max_failures_in_a_row: PositiveInt = 25
    """Consecutive failed attempts after which a job gives up: the endpoint is down. Replies so far
    are kept."""
    max_cost_usd: PositiveFloat | None = None
    """Stop before all requests ever sent through the cache may have cost more; null for no limit.
    A request counts at the most that it can cost until its reply reports the actual cost."""
    batch: bool = False
    """Use the endpoint's batch interface (files, `/batches`): cheaper, and answered within a day. A
    killed job finds its batches again. A job's own server gets direct requests."""
    batch_poll_seconds: PositiveFloat = 30.0
    """Seconds between status checks of a batch."""
    max_requests_per_batch: Annotated[int, Field(ge=1, le=50_000)] = 50_000
    """The default is OpenAI's limit; lower it if your organization limits enqueued tokens."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """Prices by name of the model; a model without a price counts as free."""
    insecure_hosts: tuple[str, ...] = ()
    """Hosts other than this machine to which keys may be sent unencrypted, over http://."""
    cache: str = "results/cache/replies.sqlite"
    """SQLite file of all replies, relative to the study's folder. Do not put it on a network file
    system that several machines write to at once."""
