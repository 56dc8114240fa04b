"""Schedule the jobs of a plan on GPUs and cores, and find the peak of disk use."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from nullsae.planning.dag import Job


@dataclass(frozen=True)
class Schedule:
    """Start and end times of jobs."""

    start_seconds: list[float]
    end_seconds: list[float]
    longest_chain_seconds: float
    """The time that no number of machines can shorten."""

    @property
    def seconds(self) -> float:
        """Time from the first job's start to the last one's end."""
        return max(self.end_seconds, default=0.0)


def list_schedule(
    needs: Sequence[Sequence[int]],
    seconds: Sequence[float],
    *,
    uses_gpu: Sequence[bool],
    gpus: int,
    slots: int,
) -> Schedule:
    """Start each job as soon as it is ready and has room, that with the longest way ahead first.

    List scheduling (Graham 1969, SIAM J. Appl. Math. 17): at most twice as long as the best order.

    Each job comes after those that it needs, which are indices, and takes one GPU or one slot.
    """
    n = len(needs)
    to_end = [0.0] * n
    for index in reversed(range(n)):
        to_end[index] += seconds[index]
        for need in needs[index]:
            to_end[need] = max(to_end[need], to_end[index])
    waiting = TopologicalSorter(dict(enumerate(needs)))
    waiting.prepare()
    ready: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    free = {True: gpus, False: slots}
    start, end = [0.0] * n, [0.0] * n
    running: list[tuple[float, int]] = []
    now = 0.0
    while waiting.is_active():
        for index in waiting.get_ready():
            heapq.heappush(ready[uses_gpu[index]], (-to_end[index], index))
        for kind in (True, False):
            while free[kind] and ready[kind]:
                _, index = heapq.heappop(ready[kind])
                free[kind] -= 1
                start[index], end[index] = now, now + seconds[index]
                heapq.heappush(running, (end[index], index))
        now, done = heapq.heappop(running)
        free[uses_gpu[done]] += 1
        waiting.done(done)
    return Schedule(start, end, max(to_end, default=0.0))


def peak_disk_bytes(jobs: Sequence[Job], schedule: Schedule) -> float:
    """Return the peak disk use of a schedule.

    A job's outputs count from its start, and its checkpoints until its end.
    """
    changes: list[tuple[float, int, float]] = []
    for job, start, end in zip(jobs, schedule.start_seconds, schedule.end_seconds, strict=True):
        changes.append((start, 1, job.work.written_bytes + job.work.work_bytes))
        changes.append((end, 0, -job.work.work_bytes))
    held = peak = 0.0
    # At the same moment, space is freed before it is taken.
    for _, _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak
