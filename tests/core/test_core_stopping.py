from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from nullsae.core.errors import UserError
from nullsae.core.stopping import Stop, StoppedError, stoppable


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], autouse=True)
def kind(request: pytest.FixtureRequest) -> None:
    """The signal that `terminate` sends: a cluster's warning, or Ctrl-C."""
    global SENT
    SENT = request.param


SENT = signal.SIGTERM


def terminate() -> None:
    os.kill(os.getpid(), SENT)


def leave() -> None:
    raise StoppedError("left")


def test_a_signal_stops_the_block_only_at_a_safe_point() -> None:
    passed = []
    with stoppable() as stop:
        stop.here(leave)
        terminate()
        passed.append(stop.asked)
        with pytest.raises(StoppedError):
            stop.here(leave)
    assert passed == [True]
    assert stop.signal == SENT.name


def test_interruptible_work_stops_at_once() -> None:
    begun, ended = [], []

    def work(stop: Stop) -> None:
        with stop.anywhere(leave):
            begun.append(1)
            terminate()
            ended.append(1)

    with stoppable() as stop, pytest.raises(StoppedError):
        work(stop)
    assert (begun, ended) == ([1], [])


def test_work_does_not_start_after_a_signal() -> None:
    with stoppable() as stop:
        terminate()
        with pytest.raises(StoppedError), stop.anywhere(leave):
            raise AssertionError("begun")


def test_a_second_signal_does_not_interrupt_the_saving() -> None:
    saved = []

    def save() -> None:
        terminate()
        saved.append(1)
        raise StoppedError("left")

    with stoppable() as stop, pytest.raises(StoppedError), stop.anywhere(save):
        terminate()
    assert saved == [1]


def test_signals_outside_the_work_are_only_recorded() -> None:
    with stoppable() as stop:
        with stop.anywhere(leave):
            pass
        terminate()
        assert stop.asked


def test_the_previous_handler_is_restored() -> None:
    seen: list[int] = []
    before = signal.signal(SENT, lambda number, _: seen.append(number))
    try:
        with pytest.raises(StoppedError), stoppable():
            leave()
        terminate()
    finally:
        signal.signal(SENT, before)
    assert seen == [SENT]


def test_a_thread_can_use_it() -> None:
    found: list[Any] = []

    def work() -> None:
        with stoppable() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], Stop)
    assert not found[0].asked


def test_a_stopped_error_is_a_user_error() -> None:
    assert issubclass(StoppedError, UserError)
