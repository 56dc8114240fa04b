"""Targets of `fuzz.py`: event files and job logs, as `nullsae watch` reads them."""

from __future__ import annotations

import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

RECORDED = Path(__file__).parents[1] / "tests/data/quick_run.events.jsonl"
LOG = "results/logs/a/subject=s.log"


def job(number: int, *needs: int) -> dict[str, Any]:
    """Return one job of a plan."""
    told = {"job": number, "rule": "a", "stage": "b", "log": LOG, "needs": list(needs)}
    return told | {"seconds": 9.0, "gpu": number == 2, "threads": 1}


def lines(*told: dict[str, Any]) -> bytes:
    """Encode events as a run writes them."""
    return b"".join(json.dumps({"time": 1.8e9, **each}).encode() + b"\n" for each in told)


def plan() -> dict[str, Any]:
    """Return a plan of three jobs, one after another."""
    first = {"event": "planned", "host": "elsewhere", "pid": 1, "cores": 2, "jobs_at_once": None}
    first |= {"gpus": 1, "keeps_going": False, "jobs": [job(1), job(2, 1), job(3, 1, 2)]}
    return first | {"replies": "results/cache/replies.sqlite", "max_cost_usd": 5.0}


def shown(study: Path) -> None:
    """Read the newest run of a study, and show it in all ways."""
    from rich.console import Console

    from nullsae.core.visible import visible
    from nullsae.watching.run import newest_run
    from nullsae.watching.screen import frame, last_line, line, print_problem

    run = newest_run(study)
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=80, height=24, force_terminal=terminal)
        for problem in run.problems:
            print_problem(console, problem)
        console.print(line(run), last_line(run), frame(run, 24))
        if not terminal:
            text = console.file.getvalue()  # type: ignore[attr-defined]
            assert visible(text) == text, "control characters on the terminal"
    run.update()


class Events:
    """An event file, or its first line."""

    name: ClassVar[str] = "events"

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """Events of a real run, and plans as JSON, whose values are changed one by one."""
        started, ended = {"event": "started", "job": 1}, {"event": "ended"}
        return (RECORDED.read_bytes(), lines(plan(), started, ended), *[lines(plan())] * 4)

    def read(self, data: bytes, folder: Path) -> None:
        """Read the file as `nullsae watch` does."""
        file = folder / ".snakemake/log/2026-01-01.events.jsonl"
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        shown(folder)


class Event(Events):
    """A line after a plan."""

    name: ClassVar[str] = "event"

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """One event of each kind."""
        failed = {"event": "failed", "job": 2, "logs": [LOG]}
        kinds: tuple[dict[str, Any], ...] = (failed, {"event": "error", "text": "Command 'x' died"})
        kinds += ({"event": "started", "job": 1}, {"event": "finished", "job": 1})
        return tuple(map(lines, (*kinds, {"event": "ended"})))

    def read(self, data: bytes, folder: Path) -> None:
        """Read the event in a run of two jobs."""
        running = ({"event": "started", "job": number} for number in (1, 2))
        super().read(lines(plan(), *running) + data + b"\n", folder)


class JobLog:
    """The log of a job."""

    name: ClassVar[str] = "job_log"
    examples: ClassVar[tuple[bytes, ...]] = (
        b"nullsae 0.1; cpu: AMD EPYC, 2 threads; host node3\n"
        b"train: 1,024 of 4,096 tokens, 128 tokens/s, 1 h 24 s left, loss 0.5\n",
        b"train: 1 of 2 steps, 2 steps/s, 2 d 3 h left\nnullsae: error: config: x\n",
    )

    def read(self, data: bytes, folder: Path) -> None:
        """Read the log of a running job and of a failed one."""
        log = folder / LOG
        log.parent.mkdir(parents=True)
        log.write_bytes(data)
        failed = {"event": "failed", "job": 2, "logs": [LOG]}
        Events().read(lines(plan(), {"event": "started", "job": 1}, failed), folder)


def targets() -> list[Any]:
    """Return the targets of this module."""
    return [Events(), Event(), JobLog()]
