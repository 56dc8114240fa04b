"""Progress of long work: a bar on a terminal, a line every 30 seconds in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)

EVERY_SECONDS = 30.0


class Bar(Protocol):
    """Call it with (done, total) or (done, total, a figure to show)."""

    def __call__(self, done: int, total: int, figure: float | str | None = None) -> None: ...


class LogLines:
    """Logs done, total, rate and time left, at most every `EVERY_SECONDS`.

    Shorter work logs nothing. The rate is the mean since the first call, which may start at any
    step, as in a resumed training.
    """

    def __init__(
        self, description: str, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` returns seconds since any fixed time."""
        self.description, self.unit, self.clock = description, unit, clock
        self.logged = clock()
        self.first: tuple[float, int] | None = None
        self.before = 0

    def __call__(self, done: int, total: int, figure: float | str | None = None) -> None:
        now = self.clock()
        if self.first is None or done < self.before:  # a new phase, which counts from its start
            self.first = now, done
        self.before = done
        if now - self.logged < EVERY_SECONDS:
            return
        self.logged = now
        told = [f"{done:,} of {total:,} {self.unit}"]
        seconds, n_done = now - self.first[0], done - self.first[1]
        if seconds > 0 and n_done > 0:
            rate = n_done / seconds
            told.append(f"{_number(rate)} {self.unit}/s")
            if done < total:
                told.append(f"{duration((total - done) / rate)} left")
        log.info("%s: %s", self.description, ", ".join([*told, *filter(None, [_text(figure)])]))


def _text(figure: float | str | None) -> str:
    """Format the figure shown after the rate."""
    return f"{figure:.4f}" if isinstance(figure, float) else figure or ""


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Format seconds with at most two figures: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    return f"{hours // 24} d {hours % 24} h"


@contextmanager
def bar(description: str, unit: str) -> Iterator[Bar]:
    """Show progress on stderr with rate and time left: a bar on a terminal, else `LogLines`."""
    if not sys.stderr.isatty():
        yield LogLines(description, unit)
        return
    # Imported here to save 40 ms for jobs and `--help`.
    from nullsae.core.terminal_bar import terminal_bar

    with terminal_bar(description, unit) as update:

        def on_terminal(done: int, total: int, figure: float | str | None = None) -> None:
            update(done, total, _text(figure))

        yield on_terminal
