"""Snakemake's output with `--logger nullsae`: its messages, with a screen instead of its job list.

The screen is drawn in Snakemake's own process, so exit code, Ctrl-C and signals stay as they are.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.base import LogHandlerBase

from nullsae.watching import RUN_STARTED

if TYPE_CHECKING:
    from rich.console import Console

    from nullsae.watching.run import Run

# Events that the screen shows better.
SHOWN = ("run_info", "resources_info", "job_info", "job_started", "job_finished", "progress")
NOISE = ("Select jobs to execute...",)
# Options that ask for Snakemake's own list.
ASKED = ("dryrun", "verbose", "printshellcmds", "debug_dag")


class LogHandler(LogHandlerBase):
    """Prints the run; Snakemake's log file stays as it is."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
        from snakemake.settings.enums import Quietness

        settings: Any = self.common_settings
        quiet = {Quietness.ALL, Quietness.PROGRESS, Quietness.RULES}.intersection(
            settings.quiet or ()
        )
        self.is_plain = bool(quiet) or any(getattr(settings, name) for name in ASKED)
        self.own = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=sys.stdout if settings.stdout else sys.stderr,
            formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
            filter=DefaultFilter(
                settings.quiet or set(),
                settings.debug_dag,
                settings.verbose,
                settings.dryrun,
                settings.printshellcmds,
            ),
        )
        self.run: Run | None = None
        self.console: Console
        self.thread: threading.Thread
        self.stop = threading.Event()
        self.printing = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if self.is_plain or record.levelno >= logging.WARNING:
            if event == "job_error" and self._print_failure(record):
                return
            if event == "error" and not self.is_plain:
                from nullsae.watching.at_work import refusal
                from nullsae.watching.screen import shortened

                text = record.getMessage()
                record.msg = refusal(text) or shortened(text)
            self._say(record)
        elif event == RUN_STARTED:
            self._start(Path(record.file))  # type: ignore[attr-defined]
        elif event not in SHOWN and record.getMessage() not in NOISE:
            self._say(record)

    def close(self) -> None:
        """Stop the screen at the end of the run."""
        self.stop.set()
        if self.run is not None:
            self.thread.join()
        super().close()

    def _start(self, file: Path) -> None:
        """Start to show the run."""
        from rich.console import Console

        from nullsae.watching.run import Run

        self.run, self.console = Run(Path.cwd(), file), Console(stderr=True)
        self.run.update()
        self.thread = threading.Thread(
            target=self._show, args=(self.run,), name="screen", daemon=True
        )
        self.thread.start()

    def _show(self, run: Run) -> None:
        from nullsae.watching.screen import show

        try:
            show(run, self.console, self.stop, problems=False, lock=self.printing)
        except Exception as error:  # the run continues, with Snakemake's own messages
            self.is_plain = True
            print(f"The screen stopped: {error!r}", file=sys.stderr)

    def _print_failure(self, record: Any) -> bool:
        """Print which job of the run failed and the end of its log; return whether it did."""
        from nullsae.watching.run import Problem
        from nullsae.watching.screen import print_problem

        job = None if self.run is None else self.run.jobs.get(record.jobid)
        if job is None or self.is_plain:
            return False
        with self.printing:
            print_problem(self.console, Problem(job, logs=tuple(map(Path, record.log))))
        return True

    def _say(self, record: logging.LogRecord) -> None:
        # The screen replaces stderr by a stream that prints above it.
        with self.printing:
            if not self.common_settings.stdout:
                self.own.stream = sys.stderr
            self.own.handle(record)
