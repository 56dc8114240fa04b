"""A damaged or hostile file of events gives one line, or is shown as far as possible."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nullsae.core.errors import UserError
from nullsae.watching import job_logs
from nullsae.watching.events import FOLDER, SUFFIX

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
fuzz_events = importlib.import_module("fuzz_events")
PLAN = fuzz_events.plan()


def read(folder: Path, data: bytes) -> None:
    file = folder / FOLDER / f"2026-01-01{SUFFIX}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    fuzz_events.shown(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        fuzz_events.lines(PLAN)[:-20],
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        fuzz_events.lines({"event": "ended"}),
        fuzz_events.lines({**PLAN, "jobs": None}),
        fuzz_events.lines({**PLAN, "jobs": [{**PLAN["jobs"][0], "log": "a\0b"}]}),
        fuzz_events.lines({**PLAN, "jobs": [{**PLAN["jobs"][0], "threads": 0}]}),
        json.dumps({**PLAN, "time": "now"}).encode() + b"\n",
    ],
    ids=range(9),
)
def test_a_file_without_a_plan_is_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{SUFFIX}: its first line is not a run's plan"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    "told",
    [
        {"event": "started", "job": [1]},
        {"event": "finished", "job": 99},
        {"event": "failed", "job": 1, "logs": ["\0", "\ud800"]},
        {"event": "failed", "job": 1, "logs": ["n" * 3000, "."]},
        {"event": "error", "text": "\x1b[2J\u202e\ud800"},
        {"event": "ended", "time": 1e400},
        {**PLAN, "jobs": []},
    ],
    ids=range(7),
)
def test_a_line_of_any_kind_is_shown_or_passed_over(told: dict[str, Any], tmp_path: Path) -> None:
    read(tmp_path, fuzz_events.lines(PLAN, told, {"event": "started", "job": 2}))


def test_jobs_that_wait_for_each_other_or_come_twice_are_scheduled(tmp_path: Path) -> None:
    circle = [fuzz_events.job(1, 2), fuzz_events.job(2, 1), fuzz_events.job(1, 2)]
    read(tmp_path, fuzz_events.lines({**PLAN, "jobs": circle}))


def test_a_log_that_says_a_time_beyond_reason_says_none() -> None:
    assert job_logs.seconds_left(f"1 of 2 steps, {'9' * 5000} s left") is None
    assert job_logs.seconds_left("1 of 2 steps, 2 d 3 h left") == 2 * 86400 + 3 * 3600
