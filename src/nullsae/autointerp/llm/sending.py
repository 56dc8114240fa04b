"""Sends requests within the limits on their number, their cost and their failures."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from pathlib import Path

from nullsae.autointerp.llm.answers import AttemptError, Valid
from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.connection import Connection
from nullsae.autointerp.llm.counts import counts
from nullsae.autointerp.llm.kept_replies import Kept
from nullsae.autointerp.llm.limiter import Limiter
from nullsae.autointerp.llm.messages import Usage, cost_usd
from nullsae.autointerp.llm.refusals import RefusedError
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

log = logging.getLogger(__name__)

# Waits are drawn from 0 to this, doubled with each attempt ("full jitter").
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
# How long replies in flight may still arrive after something has stopped the run.
GRACE_SECONDS = 5.0
# After such a wait, another process may have received the reply.
LOOK_AGAIN_SECONDS = 0.5
# The endpoint counts as down only if a single request failed this often: many requests in flight
# fail at once when a connection breaks.
ATTEMPTS_OF_ONE = 3


class Sending:
    """Gets replies from an endpoint into the cache, until one error stops everything."""

    def __init__(
        self, endpoint: Endpoint, settings: Llm, cache: ReplyCache, usage: Usage, root: Path
    ) -> None:
        self.error: Exception | None = None
        """What stopped it."""
        self.last_failure = ""
        self.connection = Connection(endpoint, settings, root)
        self._model = endpoint.model
        self._settings = settings
        self._price = settings.prices.get(endpoint.model)
        self._cache, self._usage = cache, usage
        self._limiter = Limiter(settings.concurrency)
        self._jitter = random.Random()
        self._sending = 0
        self._sent, self._stopped = asyncio.Event(), asyncio.Event()
        self._drain_until = 0.0
        self._failures_in_a_row = 0
        self._excess = 1.0

    def stop(self, error: Exception) -> None:
        """Send nothing more; replies in flight may still arrive. The first error is kept."""
        if self.error is None:
            self.error = error
            self._drain_until = asyncio.get_running_loop().time() + GRACE_SECONDS
            self._stopped.set()
            self._sent.set()
            self._limiter.stop(error)

    async def drain(self) -> None:
        """Wait for what was in flight at `stop`, for a few seconds at most."""
        loop = asyncio.get_running_loop()
        while self._sending and (left := self._drain_until - loop.time()) > 0:
            self._sent.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._sent.wait(), left)

    def count_cached(self, kept: Kept) -> None:
        """Count a reply that this run need not pay."""
        self._usage.cached_calls += 1
        self._usage.cached_cost_usd += kept.cost_usd

    def count_failure(self, error: AttemptError) -> None:
        """Count an attempt without a reply."""
        self._usage.attempts_failed += 1
        self.last_failure = str(error)

    async def persist(self, key: bytes, body: bytes, max_completion_tokens: int) -> Kept | None:
        """Send a request, as JSON, until a valid reply comes, and keep it under `key`.

        The budget allows for an answer of `max_completion_tokens`. None if no attempt succeeded; a
        `UserError` if nothing more can be answered.
        """
        for attempt in range(1, self._settings.max_attempts + 1):
            if attempt > 1:
                longest = min(FIRST_WAIT_SECONDS * 2.0 ** (attempt - 2), LONGEST_WAIT_SECONDS)
                with suppress(TimeoutError):
                    seconds = self._jitter.uniform(0, longest)
                    await asyncio.wait_for(self._stopped.wait(), seconds)
                if self.error is not None:
                    raise self.error
            with suppress(AttemptError):
                return await self._attempt(key, body, max_completion_tokens, attempt)
        return None

    def worst_usd(self, n_bytes: int, max_completion_tokens: int) -> float:
        """Return the most that a request of `n_bytes` can cost, judging by earlier ones."""
        return self._excess * cost_usd(self._price, n_bytes, max_completion_tokens)

    @property
    def batch_share(self) -> float:
        """The price of tokens in a batch, as a share of the usual price."""
        return self._price.batch_share if self._price is not None else 1.0

    async def _attempt(self, key: bytes, body: bytes, max_tokens: int, number: int) -> Kept:
        """Send once, within the limits, and keep the reply; raises as `Connection.send`."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        await self._limiter.acquire(again=number > 1)
        worst = self.worst_usd(len(body), max_tokens)
        reserved = lost = 0.0
        try:
            sent_at = loop.time()
            if sent_at - asked_at > LOOK_AGAIN_SECONDS:
                kept = self._cache.get(key)
                if kept is not None:
                    self.count_cached(kept)
                    return kept
            if worst and self._settings.max_cost_usd is not None:
                await self._reserve(worst, self._settings.max_cost_usd)
                reserved = worst
                sent_at = loop.time()
            # Until it is known to have cost less, even if this is cancelled.
            lost = worst
            self._sending += 1
            try:
                valid = await self.connection.send(body, max_tokens)
            finally:
                self._sending -= 1
                self._sent.set()
            kept = self.paid(valid, len(body), max_tokens)
            self._cache.put(key, kept, reserved_usd=reserved)
            if kept.cost_usd > worst:
                # Before the next request reserves money.
                self._cache.flush()
            reserved = lost = 0.0
            self._limiter.succeeded()
            self._failures_in_a_row = 0
            return kept
        except AttemptError as error:
            if not error.may_be_billed:
                lost = 0.0
            self._note(error, sent_at, number)
            raise
        except UserError as error:
            lost = 0.0
            self._usage.attempts_failed += isinstance(error, RefusedError)
            raise
        finally:
            self._usage.lost_usd += lost
            self._cache.release(reserved, spent_usd=lost)
            self._limiter.release()

    def paid(self, valid: Valid, n_bytes: int, max_tokens: int, share: float = 1.0) -> Kept:
        """Return a reply with its cost, charged to this run: `share` of the price of its tokens.

        `n_bytes` is the size of the request, which allowed for `max_tokens`. If the endpoint's
        token counts are missing or implausible, it costs the most that it can.
        """
        found = counts(valid, n_bytes, max_tokens)
        worst = share * self.worst_usd(n_bytes, max_tokens)
        cost = share * cost_usd(self._price, found.prompt_tokens, found.completion_tokens)
        if not found.are_counted:
            cost = max(cost, worst)
            self._usage.estimated += 1
            if self._usage.estimated == 1:
                log.warning(
                    "%s reports no credible token counts: they are estimated, and each such reply "
                    "counts at its highest possible cost",
                    self.connection.asked,
                )
        elif worst and cost > worst:
            # The endpoint ignores limits, so later reservations allow for that.
            self._excess *= cost / worst
        self._usage.calls += 1
        self._usage.prompt_tokens += found.prompt_tokens
        self._usage.completion_tokens += found.completion_tokens
        self._usage.cost_usd += cost
        return Kept(valid.reply, self._model, found.prompt_tokens, found.completion_tokens, cost)

    def _note(self, error: AttemptError, sent_at: float, number: int) -> None:
        """Count a failed attempt; stop everything after too many in a row."""
        self.count_failure(error)
        if error.pause is not None:
            self._limiter.pause(error.pause)
        new_wave = self._limiter.throttled(sent_at) if error.throttled else True
        if error.pause is None and new_wave:
            # An endpoint that announces a pause is not down, and a wave of 429s is one event.
            self._failures_in_a_row += 1
        most = self._settings.max_failures_in_a_row
        enough = number >= min(ATTEMPTS_OF_ONE, self._settings.max_attempts)
        if self._failures_in_a_row >= most and enough and self.error is None:
            raise UserError(
                f"{self.connection.asked}: {self._failures_in_a_row} attempts failed in a row "
                f"(llm.max_failures_in_a_row), the last with: {error}; {self.kept_so_far()}"
            )

    async def _reserve(self, worst: float, limit: float) -> None:
        """Reserve money; wait for requests in flight, which may cost less than reserved."""
        while self.error is None:
            spent = self._cache.reserve(worst, limit)
            if spent is not None and not self._sending:
                self._cache.flush()
                spent = self._cache.reserve(worst, limit)
                if spent is not None:
                    raise self.no_money(spent, worst)
            if spent is None:
                return
            self._sent.clear()
            await self._sent.wait()
        raise self.error

    def no_money(self, spent: float, worst: float) -> UserError:
        """Return the error for a request that may exceed the budget."""
        limit = self._settings.max_cost_usd
        return UserError(
            f"llm.max_cost_usd: {spent:.6g} of {limit:g} USD are spent, and the next "
            f"request to {self._model} may cost {worst:.2g}; {self.kept_so_far()}"
        )

    def kept_so_far(self) -> str:
        """Return the end of an error message: what is kept, and how to resume."""
        n, path = self._cache.count(), self._cache.path
        return f"{n} replies are kept in {path}, and running again resumes from there"
