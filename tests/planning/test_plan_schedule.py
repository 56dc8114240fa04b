"""Schedules, against closed forms, bounds of any schedule, and a slow simulation."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.jobs.work.amounts import Work
from nullsae.planning.dag import Job
from nullsae.planning.schedule import Schedule, list_schedule, peak_disk_bytes


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[list[int]], list[float], list[bool]]:
    n = draw(st.integers(1, 14))
    needs = [
        sorted(draw(st.sets(st.integers(0, index - 1), max_size=3))) if index else []
        for index in range(n)
    ]
    seconds = [float(draw(st.integers(0, 9))) for _ in range(n)]
    return needs, seconds, [draw(st.booleans()) for _ in range(n)]


def longest_chain(needs: list[list[int]], seconds: list[float]) -> float:
    ends: list[float] = []
    for index, wanted in enumerate(needs):
        ends.append(seconds[index] + max((ends[w] for w in wanted), default=0.0))
    return max(ends)


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(1, 4), st.integers(1, 4))
def test_a_schedule_keeps_order_and_room_and_the_bound_of_graham(
    graph: tuple[list[list[int]], list[float], list[bool]], gpus: int, slots: int
) -> None:
    needs, seconds, on_gpu = graph
    found = list_schedule(needs, seconds, uses_gpu=on_gpu, gpus=gpus, slots=slots)
    for index, wanted in enumerate(needs):
        assert found.end_seconds[index] == found.start_seconds[index] + seconds[index]
        assert all(found.end_seconds[w] <= found.start_seconds[index] for w in wanted)
    for moment in found.start_seconds:
        at_work = [
            index
            for index in range(len(needs))
            if found.start_seconds[index] <= moment < found.end_seconds[index]
        ]
        assert sum(on_gpu[index] for index in at_work) <= gpus
        assert sum(not on_gpu[index] for index in at_work) <= slots
    chain = longest_chain(needs, seconds)
    assert found.longest_chain_seconds == chain
    busy = {
        kind: sum(s for s, uses in zip(seconds, on_gpu, strict=True) if uses is kind)
        for kind in (True, False)
    }
    assert found.seconds >= max(chain, busy[True] / gpus, busy[False] / slots)
    assert found.seconds <= chain + busy[True] / gpus + busy[False] / slots


def test_independent_jobs_fill_the_machines() -> None:
    found = list_schedule([[]] * 12, [5.0] * 12, uses_gpu=[True] * 12, gpus=4, slots=1)
    assert found.seconds == 15.0
    assert found.longest_chain_seconds == 5.0


def test_the_longest_way_to_the_end_goes_first() -> None:
    """First come, first served would start with the two short jobs and take 12."""
    needs: list[list[int]] = [[], [], [], [2]]
    found = list_schedule(needs, [2.0, 2.0, 5.0, 5.0], uses_gpu=[True] * 4, gpus=2, slots=1)
    assert found.seconds == 10.0


def test_disk_holds_results_and_the_checkpoints_of_what_is_trained() -> None:
    capture = Job("cache_activations", Work(written_bytes=100.0), [], [])
    train = Job("train_sae", Work(written_bytes=10.0, work_bytes=30.0), [0], [])
    other = Job("evaluate_sae", Work(written_bytes=1.0), [1], [])
    jobs = [capture, train, other, Job("report", Work(written_bytes=20.0), [2], [])]
    assert peak_disk_bytes(jobs, Schedule([0, 1, 2, 3], [1, 2, 3, 4], 4.0)) == 100 + 10 + 30
    # Two trainings at once.
    again = [*jobs, Job("train_sae", Work(written_bytes=10.0, work_bytes=30.0), [0], [])]
    assert peak_disk_bytes(again, Schedule([0, 1, 2, 3, 1], [1, 2, 3, 4, 2], 4.0)) == 180
