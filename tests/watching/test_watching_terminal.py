"""What a run shows on a terminal of 80 columns, in a file, and to a later `watch`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_workflow import environment, tiny_study

NULLSAE = [sys.executable, "-m", "nullsae"]
SECONDS = 120.0


class Tmux:
    """Start a terminal of 80 columns and 24 lines, in its own tmux server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"nullsae-{time.time_ns()}"

    def __call__(self, *words: str) -> str:
        command = ["tmux", "-L", self.name, "-f", "/dev/null", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, check=True
        )
        return done.stdout

    def start(self, window: str, line: str) -> None:
        kind = ["new-session", "-x", "80", "-y", "24", "-s", "s"] if window == "run" else []
        self(*(kind or ["new-window"]), "-d", "-n", window, f"{line}; echo exit=$?; exec sleep 999")

    def lines(self, window: str) -> list[str]:
        """Return all that a window shows or has scrolled away."""
        text = self("capture-pane", "-p", "-S", "-", "-t", window)
        return [line.rstrip() for line in text.splitlines()]

    def until(self, window: str, is_there: Callable[[list[str]], object]) -> list[str]:
        """Wait until a window's lines are as expected, and return them."""
        end = time.monotonic() + SECONDS
        while not is_there(lines := self.lines(window)):
            assert time.monotonic() < end, "\n".join(lines)
            time.sleep(0.2)
        return lines


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    tiny_study(tmp_path / "tiny")
    terminal = Tmux(tmp_path)
    yield terminal
    terminal("kill-server")


def frame(lines: list[str]) -> list[str]:
    """Return the screen of a run, with times as T."""
    start = next(place for place, line in enumerate(lines) if line.startswith("tiny: "))
    shown = [re.sub(r"\b\d+ (s|min)\b", "T", line) for line in lines[start:] if line]
    return [re.sub(r" {3,}", "  ", line) for line in shown]


def test_a_run_shows_its_screen_and_so_does_watch_from_elsewhere(tmux: Tmux) -> None:
    tmux.start("run", "python -m nullsae run tiny -- --cores 2")
    lines = tmux.until("run", lambda lines: sum("60 s left" in line for line in lines) >= 2)
    tmux.start("watch", "python -m nullsae watch tiny")
    watched = tmux.until("watch", lambda lines: sum("60 s left" in line for line in lines) >= 2)
    for shown in (frame(lines), frame(watched)):
        jobs = [line for line in shown if line.startswith("slow ")]
        assert {tuple(line.split()) for line in jobs} < {
            ("slow", subject, "T") for subject in ("one", "two", "three")
        }
        assert shown == [
            "tiny: 0 of 4 jobs, T so far, at least T left",
            "━" * 80,
            "first 0/3  second 0/1",
            jobs[0],
            "  1,024 of 4,096 tokens, 51 tokens/s, T left",
            jobs[1],
            "  1,024 of 4,096 tokens, 51 tokens/s, T left",
            f"2 x A CPU; {shutil.disk_usage(tmux.folder).free / 1e9:,.0f} GB of disk free",
        ]
    (tmux.folder / "tiny/go").touch()
    for window in ("run", "watch"):
        lines = tmux.until(window, lambda lines: any(line.startswith("exit=") for line in lines))
        assert "exit=0" in lines
        assert any(re.fullmatch(r"All 4 jobs are done, in .*", line) for line in lines), lines
        assert not any(line.startswith("tiny: ") for line in lines), "\n".join(lines)
        assert tmux("display-message", "-p", "-t", window, "#{cursor_flag}").strip() == "1"


def test_ctrl_c_ends_snakemake_and_its_jobs_and_leaves_a_terminal_in_order(tmux: Tmux) -> None:
    tmux.start("run", "python -m nullsae run tiny -- --cores 2")
    tmux.until("run", lambda lines: sum("60 s left" in line for line in lines) >= 2)
    tmux("send-keys", "-t", "run", "C-c")
    lines = tmux.until("run", lambda lines: any(line.startswith("exit=") for line in lines))
    assert "exit=1" in lines
    assert any("Terminating processes on user request" in line for line in lines)
    assert any(line.startswith("Stopped: 0 of 4 jobs are done in ") for line in lines)
    assert tmux("display-message", "-p", "-t", "run", "#{cursor_flag}").strip() == "1"
    events = last_events(tmux.folder / "tiny")
    assert events[-1]["event"] == "ended"


def run_tiny(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*NULLSAE, "run", "tiny", "--", "--cores", "2", *options]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )


def last_events(study: Path) -> list[dict[str, Any]]:
    files = sorted((study / ".snakemake/log").glob("*.events.jsonl"))
    return [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []


def test_a_failure_is_shown_with_the_end_of_its_log_and_again_by_watch(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "tiny")
    for name in ("go", "fails"):
        (study / name).touch()
    done = run_tiny(tmp_path)
    told = [
        "Failed: end all",
        "  results/logs/end/subject=all.log ends with:",
        "  | begun",
        r"  | cleared \x1b[2J",
    ]
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    start = lines.index(told[0])
    assert lines[start : start + 4] == told
    assert "Command returned non-zero exit status 1." in lines
    assert lines[-1].startswith("Stopped: 3 of 4 jobs are done in ")
    assert lines[-1].endswith(", 1 failed")
    assert "\x1b" not in done.stdout
    # All of it fits a screen.
    assert len(lines) < 24
    # Snakemake's own file has its list.
    (log,) = (study / ".snakemake/log").glob("*.snakemake.log")
    assert "Error in rule end:" in log.read_text()
    watched = subprocess.run(
        [*NULLSAE, "watch", "tiny"], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert watched.returncode == 0, watched.stderr
    again = watched.stdout.splitlines()
    start = again.index(told[0])
    whole = told[1].replace("results", "tiny/results")
    assert again[start : start + 4] == [told[0], whole, *told[2:]]
    assert again[-1] == lines[-1]


def test_a_dry_run_is_snakemake_s_own_and_leaves_no_events(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "tiny")
    done = run_tiny(tmp_path, "-n")
    assert done.returncode == 0
    assert "rule slow:" in done.stdout
    assert "This was a dry-run" in done.stdout
    assert last_events(study) == []
