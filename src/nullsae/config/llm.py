"""Config key `llm`: how endpoints are asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from nullsae.config.section import Section


class Price(Section):
    """What a model costs."""

    input_usd_per_million_tokens: NonNegativeFloat
    output_usd_per_million_tokens: NonNegativeFloat
    batch_share: NonNegativeFloat = 0.5
    """What the same tokens cost in a batch (`llm.batch`), as a share of these prices."""


class Llm(Section):
    """How endpoints are asked. Nothing here changes an answer, so an edit runs nothing again."""

    concurrency: PositiveInt = 32
    """Requests of one job in flight; fewer after an endpoint said 429, until it says no more."""
    timeout_seconds: PositiveFloat = 120.0
    """Of one attempt."""
    max_attempts: PositiveInt = 8
    """Of one request, waiting longer after each, before it counts as failed."""
    max_failures_in_a_row: PositiveInt = 25
    """Failed attempts without one that succeeds, after which a job gives up: the endpoint is down.
    What came before is kept."""
    max_cost_usd: PositiveFloat | None = None
    """Stop before all that was ever asked through the cache may have cost more; null for no limit.
    Each request is counted at the most that it can cost until its reply says what it did cost, and
    for good where no reply came that says so."""
    batch: bool = False
    """Ask through the endpoint's batch interface (files, `/batches`): cheaper, and answered within
    a day. A job that was killed finds its batches again. A job's own server is asked directly."""
    batch_poll_seconds: PositiveFloat = 30.0
    """Seconds between two looks at a batch."""
    max_requests_per_batch: Annotated[int, Field(ge=1, le=50_000)] = 50_000
    """The most that OpenAI accepts; lower it if your organization limits enqueued tokens."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """Prices by name of the model; a model without a price counts as free."""
    insecure_hosts: tuple[str, ...] = ()
    """Hosts other than this machine that may be sent a key without encryption, by http://."""
    cache: str = "results/cache/replies.sqlite"
    """SQLite file of all replies, relative to the folder of the study. A network file system that
    several machines write to at once is no place for it."""
