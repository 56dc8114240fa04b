"""A run as recorded in its events and the logs of its jobs."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.core.errors import UserError
from nullsae.core.progress import LogLines, duration
from nullsae.core.provenance import described, device_name, this_job
from nullsae.watching import job_logs, screen
from nullsae.watching.events import FOLDER, SUFFIX
from nullsae.watching.run import Job, Problem, Run, newest_run
from nullsae.watching.screen import frame, last_line, line, print_problem, show

# From the quick study, run with two cores on a busy machine.
RECORDED = Path(__file__).parents[1] / "data/quick_run.events.jsonl"


def a_run(root: Path, text: str) -> Run:
    file = root / FOLDER / f"2026-01-01{SUFFIX}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    run = Run(root, file)
    run.update()
    return run


def test_after_each_event_of_a_real_run_its_jobs_are_where_the_events_left_them(
    tmp_path: Path,
) -> None:
    lines = RECORDED.read_text(encoding="utf-8").splitlines(keepends=True)
    stages = {job["job"]: job["stage"] for job in json.loads(lines[0])["jobs"]}
    assert len(stages) == 25
    run = a_run(tmp_path, lines[0])
    state = dict.fromkeys(stages, "waiting")
    for text in lines[1:]:
        with run.file.open("a", encoding="utf-8") as file:
            file.write(text)
        run.update()
        told = json.loads(text)
        if told.get("job") in stages:
            state[told["job"]] = {"started": "running"}.get(told["event"], told["event"])
        assert {number: job.state for number, job in run.jobs.items()} == state
        done = Counter(stages[number] for number, where in state.items() if where == "finished")
        total = Counter(stages.values())
        assert run.stages() == {stage: (done[stage], n) for stage, n in total.items()}
    assert set(state.values()) == {"finished"}
    assert run.problems == []
    assert run.ended == json.loads(lines[-1])["time"]
    assert last_line(run) == f"All 25 jobs are done, in {duration(run.ended - run.began)}"


def test_stages_stand_in_the_order_of_the_workflow_whichever_job_comes_first(
    tmp_path: Path,
) -> None:
    planned = json.loads(RECORDED.read_text(encoding="utf-8").splitlines()[0])
    assert planned["stages"].index("sae") < planned["stages"].index("tables")
    planned["jobs"].reverse()
    run = a_run(tmp_path, json.dumps(planned) + "\n")
    assert list(run.stages()) == [name for name in planned["stages"] if name in run.stages()]
    assert set(run.stages()) == {job["stage"] for job in planned["jobs"]}


def test_the_time_left_of_a_real_run_comes_true_once_a_few_jobs_have_ended(tmp_path: Path) -> None:
    lines = RECORDED.read_text(encoding="utf-8").splitlines(keepends=True)
    end = json.loads(lines[-1])["time"]
    for n_lines in range(15, 45, 5):
        now = json.loads(lines[n_lines - 1])["time"]
        left = a_run(tmp_path, "".join(lines[:n_lines])).time_left(now)
        assert not left.is_least
        assert 0.5 < left.seconds / (end - now) < 2.0, n_lines


def job(number: int, rule: str, seconds: float | None, *needs: int, **more: Any) -> dict[str, Any]:
    log = f"results/logs/{rule}/subject=s{number}.log"
    told = {"job": number, "rule": rule, "stage": "stage", "log": log, "needs": list(needs)}
    return told | {"seconds": seconds, "gpu": False, "threads": 1} | more


def told(
    *jobs: dict[str, Any], events: tuple[tuple[str, int, float], ...] = (), **more: Any
) -> str:
    first = {"event": "planned", "host": "elsewhere", "pid": 1, "cores": 1, "jobs_at_once": None}
    first |= {"gpus": 1, "keeps_going": False, "jobs": jobs, "replies": None}
    lines = [first | {"max_cost_usd": None, "time": 0.0} | more]
    for event, number, time in events:
        lines.append({"event": event, "job": number, "logs": [], "time": time})
    return "".join(json.dumps(each) + "\n" for each in lines)


def test_the_time_left_is_the_plan_times_what_finished_jobs_took_of_theirs(tmp_path: Path) -> None:
    jobs = [job(1, "a", 10.0), job(2, "a", 30.0, 1), job(3, "b", 5.0, 2), job(4, "b", 5.0)]
    events = [("started", 1, 0.0), ("finished", 1, 20.0), ("started", 2, 20.0)]
    # Rule a took 20 s of planned 10 s: so 2 * 30 s, of which 15 s are over. No job of b has
    # finished: it is as much slower than planned as the jobs so far, 2 * 5 s each.
    assert a_run(tmp_path, told(*jobs, events=tuple(events))).time_left(35.0).seconds == 45 + 20
    # On two cores job 4 runs concurrently with job 2.
    two = told(*jobs, events=tuple(events), cores=2)
    assert a_run(tmp_path, two).time_left(35.0).seconds == 45 + 10
    # The rule has its own pace: 1 s of planned 5 s.
    events += [("started", 4, 20.0), ("finished", 4, 21.0)]
    run = a_run(tmp_path, told(*jobs, events=tuple(events), cores=2))
    assert run.time_left(35.0).seconds == 45 + 1
    # A job's own log says that it takes longer.
    log = tmp_path / "results/logs/a/subject=s2.log"
    log.parent.mkdir(parents=True)
    log.write_text("a: 1 of 5 steps, 0.01 steps/s, 2 min left, 3.2\n")
    assert run.time_left(35.0).seconds == 120 + 1
    # Over its time, without progress in its log: it may end now.
    log.unlink()
    assert run.time_left(1000.0).seconds == 1


def test_the_time_left_counts_gpus_jobs_at_once_and_what_is_not_known(tmp_path: Path) -> None:
    jobs = [job(n, "a", 10.0, gpu=True) for n in range(4)]
    for gpus, at_once, seconds in ((1, None, 40.0), (2, None, 20.0), (None, 100, 10.0)):
        text = told(*jobs, cores=64, gpus=gpus, jobs_at_once=at_once)
        assert a_run(tmp_path, text).time_left(0.0).seconds == seconds
    jobs = [job(n, "a", 10.0) for n in range(4)]
    text = told(*jobs, cores=2**63 - 1, jobs_at_once=2)
    assert a_run(tmp_path, text).time_left(0.0).seconds == 20.0
    # As with the SLURM executor, with and without a number of jobs.
    for at_once, seconds in ((2, 20.0), (None, 10.0)):
        text = told(*jobs, cores=None, jobs_at_once=at_once)
        assert a_run(tmp_path, text).time_left(0.0).seconds == seconds
    asks = [job(1, "asks", None), job(2, "asks", None)]
    left = a_run(tmp_path, told(*asks)).time_left(0.0)
    assert (left.seconds, left.is_least) == (0.0, True)
    events = (("started", 1, 0.0), ("finished", 1, 7.0))
    left = a_run(tmp_path, told(*asks, events=events)).time_left(7.0)
    assert (left.seconds, left.is_least) == (7.0, False)


def test_what_waits_for_a_failed_job_takes_no_time_any_more(tmp_path: Path) -> None:
    jobs = [job(1, "a", 10.0), job(2, "b", 10.0, 1), job(3, "c", 10.0, 2), job(4, "d", 10.0)]
    events = (("started", 1, 0.0), ("failed", 1, 1.0))
    going = a_run(tmp_path, told(*jobs, events=events, keeps_going=True))
    assert going.time_left(1.0).seconds == 10.0
    assert a_run(tmp_path, told(*jobs, events=events)).time_left(1.0).seconds == 0.0
    # It is tried again, so all jobs are left.
    again = (*events, ("started", 1, 2.0))
    run = a_run(tmp_path, told(*jobs, events=again))
    assert run.time_left(2.0).seconds == 40.0
    assert [problem.job for problem in run.problems] == [run.jobs[1]]


def test_a_line_that_is_half_written_counts_once_it_is_whole(tmp_path: Path) -> None:
    text = told(job(1, "a", 1.0), events=(("started", 1, 0.0),))
    run = a_run(tmp_path, text[:-10])
    assert run.jobs[1].state == "waiting"
    run.file.write_text(text)
    run.update()
    assert run.jobs[1].state == "running"


def test_a_run_whose_snakemake_was_killed_has_ended(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    here = {"host": socket.gethostname(), "pid": process.pid, "time": 4e9}
    run = a_run(tmp_path, told(job(1, "a", 1.0), **here))
    assert run.ended is None
    process.kill()
    process.wait()
    run.update()
    assert run.ended == run.file.stat().st_mtime
    # A process that started later has the same pid.
    assert a_run(tmp_path, told(**here | {"pid": os.getpid(), "time": 1.0})).ended is not None
    # On another machine this is unknown.
    assert a_run(tmp_path, told()).ended is None


def test_the_newest_run_is_watched_and_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").touch()
    with pytest.raises(UserError, match=r"no run here yet; `nullsae run .*` starts one"):
        newest_run(tmp_path)
    for day in ("02", "03", "01"):
        file = a_run(tmp_path, told()).file
        file.rename(file.with_name(f"2026-01-{day}{SUFFIX}"))
    assert newest_run(tmp_path).file.name == f"2026-01-03{SUFFIX}"


def test_money_is_what_the_cache_of_replies_says(tmp_path: Path) -> None:
    run = a_run(tmp_path, told(job(1, "a", 1.0), replies="replies.sqlite", max_cost_usd=5.0))
    assert run.paid_usd() is None
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.release(0.0, spent_usd=1.25)
    cache.flush()
    assert run.paid_usd() == 1.25
    assert "; $1.25 of $5.00 paid" in line(run)
    cache.close()
    (tmp_path / "replies.sqlite").write_bytes(b"no database")
    assert run.paid_usd() is None


def test_progress_and_device_are_read_as_jobs_write_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    lines = LogLines("train_sae", "tokens", clock=lambda: now[0])
    log = tmp_path / "a.log"
    log.write_text(described(this_job()) + "\ntrain_sae: sotu: 400,000 tokens in 3,125 contexts\n")
    assert job_logs.device(log) == device_name("cpu")
    assert job_logs.progress(log) == ""
    for n_left in (720, 30, 7_320, 201_600):
        with caplog.at_level(logging.INFO):
            lines(0, 1_000 + n_left)
            now[0] += 1_000
            lines(1_000, 1_000 + n_left, 0.25)
        log.write_text(log.read_text() + caplog.messages[-1] + "\nA warning.\n")
        told = job_logs.progress(log)
        assert told.startswith(f"1,000 of {1_000 + n_left:,} tokens, 1")
        assert job_logs.seconds_left(told) == n_left
    assert job_logs.seconds_left("5 of 5 steps, 2 steps/s") is None
    # The end of a long log, from the first whole line on.
    log.write_text("x: 1 of 2 steps\n" + "é" * 10_000 + "\nlast\n")
    assert job_logs.last_lines(log, 10) == ["last"]
    assert job_logs.progress(tmp_path / "none") == ""


def printed(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, height=24, force_terminal=False)


def text_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_forty_jobs_at_once_fit_a_screen_of_24_lines_and_80_columns(tmp_path: Path) -> None:
    jobs = [job(n, "train_sae", 9.0, stage=f"stage{n % 10}") for n in range(40)]
    for each in jobs:
        each["log"] = f"results/logs/train_sae/subject={'long' * 20}/seed={each['job']}.log"
    run = a_run(tmp_path, told(*jobs, events=tuple(("started", n, 0.0) for n in range(40))))
    for each in jobs[:20]:
        log = tmp_path / each["log"]
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"train_sae: 1 of 9 tokens, 1 tokens/s, 8 s left, {'x' * 80}\n")
    console = printed()
    console.print(frame(run, 24))
    lines = text_of(console)
    assert len(lines) < 24
    assert max(map(len, lines)) == 80
    (more,) = [found for each in lines if (found := re.match(r"and (\d+) more", each))]
    assert sum(each.startswith("train_sae long") for each in lines) + int(more[1]) == 40
    run.jobs[0].log = tmp_path / "not_yet.log"
    console = printed()
    console.print(frame(run, 24))
    assert "  waiting for its machine" in map(str.rstrip, text_of(console))


def test_a_file_gets_one_line_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path, told(job(1, "a", 9e3), events=(("started", 1, 0.0),)))
    clock = SimpleNamespace(now=1e6)

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock.now += timeout or 0.0
            if clock.now >= 1e6 + 600:
                self.set()
            return self.is_set()

    times = {"monotonic": lambda: clock.now, "time": lambda: 0.0, "strftime": lambda form: "19:04"}
    monkeypatch.setattr(screen, "time", SimpleNamespace(**times))
    console = printed()
    show(run, console, Stop(), problems=False)
    *lines, last = text_of(console)
    assert len(lines) == 10
    (text,) = set(lines)
    assert re.fullmatch(
        r"19:04 0 of 1 jobs; running: a; about 2 h 30 min left; \d+ GB of disk free", text
    )
    assert last == "Stopped: 0 of 1 jobs are done in 0 s"


def test_nothing_that_others_wrote_moves_a_terminal(tmp_path: Path) -> None:
    log = tmp_path / "a\x1b[2J.log"
    log.write_text("[red]one[/red]\n\x1b[31mtwo\u202e\n")
    evil = Job(1, "a", "stage", Path("x/subject=[b]\x1b[2J/y.log"), [], None, False, 1)
    console = printed()
    print_problem(console, Problem(evil, logs=(tmp_path / "none", log)))
    print_problem(console, Problem(None, "Command 'a\nlong {one}' returned 1\x07"))
    head, ends, *rest = text_of(console)
    assert head == r"Failed: a [b]\x1b[2J"
    assert ends == rf"  {tmp_path}/a\x1b[2J.log ends with:"
    assert rest == ["  | [red]one[/red]", r"  | \x1b[31mtwo\u202e", r"Command returned 1\x07"]
