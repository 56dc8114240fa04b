from __future__ import annotations

import asyncio
import time

import pytest

from nullsae.autointerp.llm.limiter import Limiter


def test_requests_never_exceed_the_limit_and_all_get_a_slot() -> None:
    async def run() -> tuple[int, list[int]]:
        limiter, peak, order = Limiter(3), 0, []

        async def hold(i: int) -> None:
            nonlocal peak
            await limiter.acquire()
            order.append(i)
            peak = max(peak, limiter.in_flight)
            await asyncio.sleep(0.001)
            limiter.release()

        await asyncio.gather(*(hold(i) for i in range(20)))
        assert limiter.in_flight == 0
        return peak, order

    peak, order = asyncio.run(run())
    assert peak == 3
    assert order == list(range(20))


def test_one_wave_of_429_halves_the_limit_once_and_the_next_wave_again() -> None:
    async def run() -> list[float]:
        limiter, limits = Limiter(16), []
        loop = asyncio.get_running_loop()
        for _ in range(16):
            await limiter.acquire()
        sent_at = loop.time()
        await asyncio.sleep(0.01)
        assert [limiter.throttled(sent_at) for _ in range(16)] == [True] + 15 * [False]
        limits.append(limiter.limit)
        await asyncio.sleep(0.01)
        for _ in range(12):
            limiter.release()
        assert limiter.throttled(loop.time())
        limits.append(limiter.limit)
        return limits

    assert asyncio.run(run()) == [8.0, 2.0]


def test_successes_restore_the_limit() -> None:
    async def run() -> tuple[float, float, float]:
        limiter = Limiter(32)
        limiter.throttled(asyncio.get_running_loop().time())
        low = limiter.limit
        limiter.succeeded()
        after_one = limiter.limit
        for _ in range(1000):
            limiter.succeeded()
        return low, after_one, limiter.limit

    assert asyncio.run(run()) == (1.0, 2.0, 32.0)


def test_nothing_starts_within_a_pause() -> None:
    async def run() -> float:
        limiter = Limiter(4)
        started = time.monotonic()
        limiter.pause(0.2)
        await asyncio.gather(*(limiter.acquire() for _ in range(3)))
        return time.monotonic() - started

    assert asyncio.run(run()) >= 0.195


def test_repeated_requests_go_first() -> None:
    async def run() -> list[str]:
        limiter, order = Limiter(1), []
        await limiter.acquire()

        async def take(name: str, again: bool) -> None:
            await limiter.acquire(again=again)
            order.append(name)
            limiter.release()

        tasks = [asyncio.create_task(take(*a)) for a in (("a", False), ("b", False), ("c", True))]
        await asyncio.sleep(0)
        limiter.release()
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == ["c", "a", "b"]


def test_stopping_wakes_all_waiting_requests_with_the_error() -> None:
    async def run() -> list[BaseException | None]:
        limiter = Limiter(1)
        await limiter.acquire()
        tasks = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        limiter.stop(ValueError("over"))
        tasks.append(asyncio.create_task(limiter.acquire()))
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert [str(error) for error in asyncio.run(run())] == ["over"] * 4


@pytest.mark.parametrize("granted", [False, True])
def test_a_cancelled_request_keeps_no_slot(granted: bool) -> None:
    async def run() -> int:
        limiter = Limiter(1)
        await limiter.acquire()
        task = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        if granted:
            limiter.release()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return limiter.in_flight

    assert asyncio.run(run()) == (0 if granted else 1)
