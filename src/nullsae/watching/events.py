"""Write the events of a Snakemake run, one per line, in a file next to Snakemake's own log."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nullsae.jobs.grid import Keys
from nullsae.jobs.shared_training import rule_of
from nullsae.paths import partition_keys
from nullsae.watching import RUN_STARTED

# Snakemake's own folder: watching a run changes nothing below `results/`.
FOLDER = Path(".snakemake/log")
SUFFIX = ".events.jsonl"

log = logging.getLogger(__name__)


def record_events(
    workflow: Any,
    planned_seconds: Callable[[str, list[Keys]], float | None],
    *,
    replies: str | None = None,
    max_cost_usd: float | None = None,
) -> None:
    """Write this run's events from now on to a file of its own. Called by `onstart`.

    If the file cannot be written, that is only a warning: no job depends on it.

    Args:
        workflow: Snakemake's workflow object.
        planned_seconds: returns the time of a rule's job that makes these cells; None if unknown.
        replies: the cache of language models' replies.
        max_cost_usd: the limit of their cost.
    """
    logger = logging.getLogger("snakemake.logging")
    file = Path.cwd() / FOLDER / f"{datetime.now():%Y-%m-%dT%H%M%S.%f}{SUFFIX}"
    resources = {name: r.value for name, r in workflow.global_resources.items()}
    first = {
        "event": "planned",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cores": resources["_cores"],
        "jobs_at_once": resources["_nodes"],
        "gpus": resources.get("gpu"),
        "keeps_going": workflow.execution_settings.keep_going,
        "stages": list(dict.fromkeys(map(_stage, workflow.rules))),
        "jobs": list(_jobs(workflow.dag, planned_seconds)),
        "replies": replies,
        "max_cost_usd": max_cost_usd,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        logger.addHandler(EventsFile(file, first))
    except OSError as error:
        log.warning("%s cannot be written (%s): this run cannot be watched", file, error.strerror)
        return
    logger.info("", extra={"event": RUN_STARTED, "file": str(file)})


def _stage(rule: Any) -> str:
    """Return the stage of a rule: its file."""
    return Path(str(rule.snakefile)).stem


def _jobs(
    dag: Any, planned_seconds: Callable[[str, list[Keys]], float | None]
) -> Iterator[dict[str, Any]]:
    """Yield the jobs about to run, without targets, each after those that it waits for."""
    running = {job for job in dag.needrun_jobs() if job.output}
    for job in (job for level in dag.toposorted(running) for job in level):
        rule = rule_of(job.rule.name)
        cells = {tuple(cell.items()): cell for cell in map(partition_keys, map(str, job.output))}
        yield {
            "job": job.jobid,
            "rule": rule,
            "stage": _stage(job.rule),
            "log": next(map(str, job.log), None),
            "needs": [need.jobid for need in dag.dependencies[job] if need in running],
            "seconds": planned_seconds(rule, list(cells.values())),
            "gpu": bool(job.resources.get("gpu")),
            "threads": job.threads,
        }


class EventsFile(logging.Handler):
    """Writes a line of JSON for each event, with an `event` and a `time` in seconds."""

    def __init__(self, file: Path, first: Mapping[str, Any]) -> None:
        super().__init__()
        self._lines = file.open("x", encoding="utf-8", buffering=1)
        self._write(first)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if (told := _told(record)) is not None:
                self._write(told)
        except OSError:
            pass  # the jobs report a full disk
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Record the end of the run, however it ended."""
        if not self._lines.closed:
            try:
                self._write({"event": "ended"})
                self._lines.close()
            except OSError:
                pass
        super().close()

    def _write(self, told: Mapping[str, Any]) -> None:
        self._lines.write(json.dumps({**told, "time": time.time()}) + "\n")


def _told(record: Any) -> dict[str, Any] | None:
    """Return the event to write for a record of Snakemake's log, or None."""
    match getattr(record, "event", None):
        case "job_info":
            return {"event": "started", "job": record.jobid}
        case "job_finished":
            return {"event": "finished", "job": record.job_id}
        case "job_error":
            return {"event": "failed", "job": record.jobid, "logs": list(map(str, record.log))}
    if record.levelno >= logging.ERROR:
        return {"event": "error", "text": record.getMessage()}
    return None
