"""The progress of a Snakemake run, from its file of events."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from nullsae.config.read import way_to_run
from nullsae.core.errors import UserError
from nullsae.paths import partition_keys
from nullsae.planning.schedule import list_schedule
from nullsae.watching import job_logs
from nullsae.watching.events import FOLDER, SUFFIX
from nullsae.watching.told import (
    MAX_LINE_BYTES,
    Ended,
    Error,
    Event,
    Failed,
    OfJob,
    Planned,
    PlannedJob,
    read_event,
)


@dataclass
class Job:
    """A job of the run."""

    number: int
    """Snakemake's job id."""
    rule: str
    stage: str
    log: Path | None
    needs: list[int]
    """Numbers of the jobs that it waits for, which all come before it."""
    planned_seconds: float | None
    gpu: bool
    threads: int
    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    started: float = 0.0
    """Start of the last attempt, in seconds since 1970. On a cluster it includes the queue."""
    seconds: float = 0.0
    """Its duration, once it is finished."""

    @property
    def name(self) -> str:
        """The rule, and the keys of the cell."""
        # The last key is in the log's file name.
        keys = partition_keys(self.log.with_suffix("") / "log") if self.log else {}
        return " ".join([self.rule, *keys.values()])


@dataclass(frozen=True)
class Problem:
    """A failure."""

    job: Job | None
    """The job that failed; None for other errors of Snakemake."""
    text: str = ""
    logs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class TimeLeft:
    """An estimate of the time left."""

    seconds: float
    is_least: bool
    """Whether the time of some jobs is unknown, such as those that ask an endpoint."""


@dataclass
class Run:
    """A run, as recorded in its file; `update` reads new events."""

    root: Path
    """The folder of the study."""
    file: Path
    jobs: dict[int, Job] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    began: float = 0.0
    ended: float | None = None
    plan: Planned | None = None
    """The first event; None if the file does not begin with one."""
    _read_bytes: int = 0

    def update(self) -> None:
        """Read the complete lines that were added; skip those that are not events."""
        with self.file.open("rb") as file:
            file.seek(self._read_bytes)
            while line := file.readline(MAX_LINE_BYTES + 1):
                if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                    break  # half written
                self._read_bytes += len(line)
                if (told := read_event(line)) is not None:
                    self._take(told)
        if self.ended is None and self._is_dead():
            self.ended = self.file.stat().st_mtime

    def _take(self, told: Event) -> None:
        match told:
            case Planned() if self.plan is None:
                self.plan, self.began = told, told.time
                for each in told.jobs:
                    self._add(each)
            case OfJob() | Failed() if told.job in self.jobs:
                job = self.jobs[told.job]
                if told.event == "started":
                    job.state, job.started = "running", told.time
                elif told.event == "finished":
                    job.state, job.seconds = "finished", max(0.0, told.time - job.started)
                else:
                    job.state = "failed"
                    logs = tuple(self.root / log for log in told.logs)
                    self.problems.append(Problem(job, logs=logs))
            case Error():
                self.problems.append(Problem(None, told.text))
            case Ended():
                self.ended = told.time

    def _add(self, told: PlannedJob) -> None:
        if told.job in self.jobs:
            return
        self.jobs[told.job] = Job(
            number=told.job,
            rule=told.rule,
            stage=told.stage,
            log=self.root / told.log if told.log else None,
            # A job may only wait for earlier ones.
            needs=[need for need in told.needs if need in self.jobs],
            planned_seconds=told.seconds,
            gpu=told.gpu,
            threads=told.threads,
        )

    def _is_dead(self) -> bool:
        """Return whether Snakemake was killed, which is known only on its own machine."""
        if self.plan is None or self.plan.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.plan.pid)
            # In a container, nobody may ask a dead one how it ended.
            is_over = process.status() == psutil.STATUS_ZOMBIE
            return is_over or bool(process.create_time() > self.began)
        except psutil.Error:
            return True

    def of_state(self, state: str) -> list[Job]:
        """Return the jobs in a state, in the order of the plan."""
        return [job for job in self.jobs.values() if job.state == state]

    def stages(self) -> dict[str, tuple[int, int]]:
        """Return finished and all jobs of each stage, in the order of the workflow."""
        found = dict.fromkeys(self.plan.stages if self.plan else (), (0, 0))
        for job in self.jobs.values():
            done, total = found.get(job.stage, (0, 0))
            found[job.stage] = done + (job.state == "finished"), total + 1
        return {stage: counts for stage, counts in found.items() if counts != (0, 0)}

    def paid_usd(self) -> float | None:
        """Return the cost of all cached replies of language models; None without any."""
        if self.plan is None or self.plan.replies is None:
            return None
        file = self.root / self.plan.replies
        try:
            if not file.is_file():
                return None
            # `ReplyCache` may write, and so is not used here.
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
                return float(db.execute("SELECT cost_usd FROM spending").fetchone()[0])
        except (OSError, sqlite3.Error, TypeError, ValueError):  # busy, or of another version
            return None

    @property
    def max_cost_usd(self) -> float | None:
        """The limit of the cost."""
        return None if self.plan is None else self.plan.max_cost_usd

    def time_left(self, now: float) -> TimeLeft:
        """Estimate the time of the remaining jobs on the run's resources.

        They are scheduled as in `nullsae plan`. A job's planned time is scaled by the ratio of
        actual to planned time of finished jobs of its rule, or of all rules if none of its own has
        finished. A running job takes at least the time left in its log.
        """
        left, estimates = list(self._to_come()), _Estimates(self.of_state("finished"))
        places = {job.number: place for place, job in enumerate(left)}
        seconds, is_least = [], False
        for job in left:
            estimate = estimates.seconds(job)
            if job.state == "running":
                told = job_logs.seconds_left(job_logs.progress(job.log)) if job.log else None
                rest = None if estimate is None else max(0.0, estimate - (now - job.started))
                known = [each for each in (told, rest) if each is not None]
                estimate = max(known) if known else None
            is_least |= estimate is None
            seconds.append(estimate or 0.0)
        needs = [[places[n] for n in job.needs if n in places] for job in left]
        slots, gpus = self._machines(left)
        uses_gpu = [job.gpu for job in left]
        plan = list_schedule(needs, seconds, uses_gpu=uses_gpu, gpus=gpus, slots=slots)
        return TimeLeft(plan.seconds, is_least)

    def _to_come(self) -> Iterator[Job]:
        """Yield the jobs that are not finished and do not wait for a failed one."""
        lost = {job.number for job in self.of_state("failed")}
        stops = bool(lost) and not (self.plan and self.plan.keeps_going)
        for job in self.jobs.values():
            if job.state == "waiting" and (stops or lost.intersection(job.needs)):
                lost.add(job.number)
            elif job.state in ("waiting", "running"):
                yield job

    def _machines(self, jobs: list[Job]) -> tuple[int, int]:
        """Return how many jobs run at once, and how many of them on GPUs."""
        n = max(1, len(jobs))
        if self.plan is None:
            return n, n
        threads = max((job.threads for job in jobs), default=1)
        cores, at_once, gpus = self.plan.cores, self.plan.jobs_at_once, self.plan.gpus
        # On a cluster the run has no cores of its own.
        slots = min(n, cores // threads if cores else n, at_once or n)
        return max(1, slots), max(1, n if gpus is None else gpus)


class _Estimates:
    """Times of jobs, from the plan and the finished jobs."""

    def __init__(self, finished: list[Job]) -> None:
        by_rule: dict[str, list[Job]] = {}
        for job in finished:
            by_rule.setdefault(job.rule, []).append(job)
        self._pace = _pace(finished) or 1.0
        self._paces = {rule: _pace(jobs) for rule, jobs in by_rule.items()}
        self._means = {r: sum(job.seconds for job in js) / len(js) for r, js in by_rule.items()}

    def seconds(self, job: Job) -> float | None:
        if job.planned_seconds is None:
            return self._means.get(job.rule)
        return job.planned_seconds * (self._paces.get(job.rule) or self._pace)


def _pace(finished: list[Job]) -> float | None:
    """Return the time that jobs took, as a multiple of their plan."""
    planned = sum(job.planned_seconds or 0.0 for job in finished)
    took = sum(job.seconds for job in finished if job.planned_seconds)
    return took / planned if planned else None


def newest_run(root: Path) -> Run:
    """Return the newest run of a study.

    Raises:
        UserError: there is none, or its file does not begin with a plan.
    """
    files = sorted((root / FOLDER).glob(f"*{SUFFIX}"))
    if not files:
        raise UserError(f"{root}: no run here yet; {way_to_run(root, 'starts one')}")
    run = Run(root, files[-1])
    try:
        if run.file.is_file():  # not a pipe
            run.update()
    except OSError as error:
        raise UserError(f"{run.file}: not readable ({error.strerror})") from None
    if run.plan is None:
        raise UserError(f"{run.file}: its first line is not a run's plan; delete it, or run again")
    return run
