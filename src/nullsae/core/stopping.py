"""Delays SIGTERM (the warning of clusters) and Ctrl-C until the state is consistent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nullsae.core.errors import UserError

ENDS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(UserError):
    """A job that was stopped early; the message says where a rerun will resume."""


class Stop:
    """Whether a signal asked the job to stop, and what to do then.

    `leave` saves what the next run needs and raises `StoppedError`, or returns if nothing worth
    saving is left to do. `signal` is the name of the signal.
    """

    def __init__(self) -> None:
        self.asked, self.signal = False, ""
        self._leave: Callable[[], None] | None = None

    def here(self, leave: Callable[[], None]) -> None:
        """Leave now if a signal has come; call it where the state is consistent."""
        if self.asked:
            leave()

    @contextmanager
    def anywhere(self, leave: Callable[[], None]) -> Iterator[None]:
        """Leave at any moment of the block, which must not touch the state."""
        self.here(leave)
        self._leave = leave
        try:
            yield
        finally:
            self._leave = None

    def _ask(self, number: int, *_: Any) -> None:
        first, self.asked = not self.asked, True
        self.signal = self.signal or signal.Signals(number).name
        # A second signal must not interrupt the saving that the first one started.
        if first and self._leave is not None:
            self._leave()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Hand SIGTERM and SIGINT to `Stop` within the block.

    Outside the main thread, where Python handles no signals, it does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._ask) for number in ENDS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
