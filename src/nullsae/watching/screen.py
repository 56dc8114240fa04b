"""Show a run: on a terminal as a screen redrawn every two seconds, elsewhere as a line a minute."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nullsae.core.progress import duration
from nullsae.core.visible import visible
from nullsae.watching import job_logs
from nullsae.watching.run import Job, Problem, Run

DRAW_SECONDS, LINE_SECONDS = 2.0, 60.0
LOG_LINES = 10
STAGES_IN_A_ROW = 3
# The command in Snakemake's errors: it contains the params of a job, which are pages of JSON.
COMMAND = re.compile(r"(?<=^Command) '.*'(?= (returned|died))", re.DOTALL | re.MULTILINE)


def show(
    run: Run,
    console: Console,
    stop: threading.Event,
    *,
    problems: bool,
    lock: AbstractContextManager[object] = nullcontext(),  # noqa: B008 - it holds nothing
) -> None:
    """Show a run until it ends or `stop` is set.

    Args:
        run: what to show.
        console: a terminal gets a screen below all other output, a file gets lines.
        stop: set from another thread; the last state is then still shown.
        problems: whether to print failures as they occur.
        lock: held while anything is printed. Other threads that print on the console must hold it
            too: drawing at the same time would leave pieces of an old screen.
    """
    printed, next_line = 0, 0.0
    # Redirect only streams that go to the terminal anyway to print above the screen.
    live = Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
    try:
        while True:
            with lock:
                run.update()
                for problem in run.problems[printed:] if problems else ():
                    print_problem(console, problem)
                printed = len(run.problems)
                if run.ended is not None or stop.is_set():
                    break
                if console.is_terminal:
                    live.start()
                    live.update(frame(run, console.height), refresh=True)
                elif time.monotonic() >= next_line:
                    next_line = time.monotonic() + LINE_SECONDS
                    _print_line(console, line(run))
            stop.wait(DRAW_SECONDS)
    finally:
        with lock:
            live.stop()
    _print_line(console, last_line(run))


def print_problem(console: Console, problem: Problem) -> None:
    """Print what failed, the path of its log, and the log's end."""
    if problem.job is None:
        _print_line(console, visible(shortened(problem.text)), "red")
        return
    _print_line(console, f"Failed: {visible(problem.job.name)}", "bold red")
    for log in problem.logs:
        if lines := job_logs.last_lines(log, LOG_LINES):
            _print_line(console, f"  {visible(str(log))} ends with:")
            for text in lines:
                _print_line(console, f"  | {text}")
            return
    for log in problem.logs:
        _print_line(console, f"  {visible(str(log))}: empty or missing")


def shortened(text: str) -> str:
    """Return an error of Snakemake without the job's command; the job's log is printed after it."""
    return COMMAND.sub("", text)


def _print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line without wrapping, to be copied and searched whole."""
    console.print(Text(text, style), soft_wrap=True)


def line(run: Run) -> str:
    """Return the progress of a run in one line."""
    n_done, n_jobs = len(run.of_state("finished")), len(run.jobs)
    counts = Counter(job.rule for job in run.of_state("running"))
    running = ", ".join(rule if n == 1 else f"{n} x {rule}" for rule, n in counts.items())
    told = [
        f"{time.strftime('%H:%M')} {n_done} of {n_jobs} jobs",
        f"running: {running}" if running else "",
        *_state(run),
    ]
    return "; ".join(filter(None, told))


def last_line(run: Run) -> str:
    """Return how a run ended."""
    n_done, n_jobs, n_failed = (
        len(run.of_state("finished")),
        len(run.jobs),
        len(run.of_state("failed")),
    )
    ended = time.time() if run.ended is None else run.ended
    took = duration(ended - run.began)
    if n_done == n_jobs:
        return f"All {n_jobs} jobs are done, in {took}"
    failed = f", {n_failed} failed" if n_failed else ""
    return f"Stopped: {n_done} of {n_jobs} jobs are done in {took}{failed}"


def _state(run: Run) -> list[str]:
    """Return texts about failures, time left, disk and cost."""
    left = run.time_left(time.time())
    least = "at least" if left.is_least else "about"
    n_failed, paid = len(run.of_state("failed")), run.paid_usd()
    limit = f" of ${run.max_cost_usd:,.2f}" if run.max_cost_usd is not None else ""
    return [
        f"{n_failed} failed" if n_failed else "",
        f"{least} {duration(left.seconds)} left",
        f"{shutil.disk_usage(run.root).free / 1e9:,.0f} GB of disk free",
        f"${paid:,.2f}{limit} paid" if paid is not None else "",
    ]


def frame(run: Run, height: int) -> RenderableType:
    """Return the screen, in at most `height` lines."""
    n_done, n_jobs = len(run.of_state("finished")), len(run.jobs)
    failed, left, disk, paid = _state(run)
    so_far = duration(time.time() - run.began)
    told = [f"{n_done} of {n_jobs} jobs", failed, f"{so_far} so far", left]
    head = f"{visible(run.root.resolve().name)}: {', '.join(filter(None, told))}"
    stages = _stages(run)
    running = sorted(run.of_state("running"), key=lambda job: job.started)
    # Six more lines: head, bar, foot, two empty ones, and the cursor's.
    jobs, names = _jobs(running, max(2, height - stages.row_count - 6))
    foot = "; ".join(filter(None, [", ".join(names), disk, paid]))
    return Group(
        Text(head, "bold", no_wrap=True, overflow="ellipsis"),
        Padding(ProgressBar(max(1, n_jobs), n_done), 0),  # ends the bar's line
        stages,
        Text(),
        jobs,
        Text(),
        Text(foot, "dim", no_wrap=True, overflow="ellipsis"),
    )


def _stages(run: Run) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in range(STAGES_IN_A_ROW):
        table.add_column(ratio=1, no_wrap=True)
    cells = []
    for stage, (done, total) in run.stages().items():
        style = "green" if done == total else "yellow" if done else ""
        cells.append(Text(f"{stage} {done}/{total}", style))
    for start in range(0, len(cells), STAGES_IN_A_ROW):
        table.add_row(*cells[start : start + STAGES_IN_A_ROW])
    return table


def _jobs(running: list[Job], height: int) -> tuple[Table, list[str]]:
    """Return the running jobs in `height` lines, and the devices of those shown."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(no_wrap=True, justify="right")
    devices: Counter[str] = Counter()
    for place, job in enumerate(running):
        # A job may take two lines; the last line is for those without room.
        if table.row_count + 2 > height - 1 and place < len(running) - 1:
            table.add_row(Text(f"and {len(running) - place} more", "dim"))
            break
        told = job_logs.progress(job.log) if job.log else ""
        if job.log and is_queued(job.log, job.started):
            told = "waiting for its machine"
        table.add_row(Text(visible(job.name)), duration(time.time() - job.started))
        if told:
            table.add_row(Text(f"  {told}", "cyan"))
        if job.log and (name := job_logs.device(job.log)):
            devices[name] += 1
    return table, [name if n == 1 else f"{n} x {name}" for name, n in devices.items()]


def is_queued(log: Path, started: float) -> bool:
    """Return whether a job has not started to write its log; clocks may be a minute apart.

    A job on this machine writes it at once.
    """
    try:
        return log.stat().st_mtime < started - 60
    except OSError:
        return True
