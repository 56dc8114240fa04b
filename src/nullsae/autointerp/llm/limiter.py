"""Limits the requests in flight: fewer after a 429, more while the endpoint answers."""

from __future__ import annotations

import asyncio
from collections import deque

# Growth of the limit, as a share, in the time of `limit` requests; at least one request.
GROWTH = 0.1


class Limiter:
    """Additive increase, multiplicative decrease, and pauses for the whole endpoint.

    Waiting requests start in order of arrival, so that those with the same prefix stay together;
    repeated ones go first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume_at = 0.0
        self._decreased_at = -1.0
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None

    async def acquire(self, *, again: bool = False) -> None:
        """Wait for a slot, first in line if sent `again`; raises what `stop` was called with."""
        if self._error is not None:
            raise self._error
        if not self._waiting and self._free():
            self.in_flight += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(waiter)
        self._wake()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release()
            raise

    def release(self) -> None:
        """Free a slot."""
        self.in_flight -= 1
        self._wake()

    def succeeded(self) -> None:
        """Grow the limit after an answer, by `GROWTH` in the time of `limit` requests."""
        self.limit = min(self.most, self.limit + max(1 / self.limit, GROWTH))

    def throttled(self, sent_at: float) -> bool:
        """Handle a 429 for a request sent at a loop time; return whether it starts a new wave.

        Only then is the limit halved. Requests already in flight tell nothing about the new limit.
        """
        if sent_at <= self._decreased_at:
            return False
        self._decreased_at = asyncio.get_running_loop().time()
        self.limit = max(1.0, min(self.limit, float(self.in_flight)) / 2)
        return True

    def pause(self, seconds: float) -> None:
        """Send nothing for this long."""
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + seconds)

    def stop(self, error: Exception) -> None:
        """Let no request start any more; waiting ones get the error."""
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _free(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self.in_flight < int(self.limit) and now >= self._resume_at

    def _wake(self) -> None:
        while self._waiting and self._free():
            waiter = self._waiting.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)
        loop = asyncio.get_running_loop()
        if self._waiting and loop.time() < self._resume_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(self._resume_at, self._wake)
