"""What long work reports in a log."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from nullsae.core.progress import LogLines, bar, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_line_comes_every_half_minute_with_rate_and_time_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    lines = LogLines("cache_activations", "tokens", clock)
    for done in range(0, 101_000, 1_000):  # 1,000 tokens a second
        lines(done, 1_000_000)
        clock.now += 1
    assert told(caplog) == [
        "cache_activations: 30,000 of 1,000,000 tokens, 1,000 tokens/s, 16 min left",
        "cache_activations: 60,000 of 1,000,000 tokens, 1,000 tokens/s, 16 min left",
        "cache_activations: 90,000 of 1,000,000 tokens, 1,000 tokens/s, 15 min left",
    ]


def test_a_resumed_training_counts_only_its_own_steps_in_the_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    lines = LogLines("train_sae", "steps", clock)
    for step in range(901, 964):  # one step in two seconds
        lines(step, 1_000, 0.25)
        clock.now += 2
    assert told(caplog)[0] == "train_sae: 916 of 1,000 steps, 0.5 steps/s, 3 min left, 0.2500"
    assert told(caplog)[-1] == "train_sae: 961 of 1,000 steps, 0.5 steps/s, 78 s left, 0.2500"


def test_a_second_phase_has_its_own_rate(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    lines = LogLines("train_sae", "steps", clock)
    for done in range(5_000):
        lines(done, 5_000)
    for step in range(1, 62):
        clock.now += 1
        lines(step, 61, "3 calls")
    assert told(caplog) == [
        "train_sae: 30 of 61 steps, 1 steps/s, 31 s left, 3 calls",
        "train_sae: 60 of 61 steps, 1 steps/s, 1 s left, 3 calls",
    ]


def test_one_long_step_is_logged_without_a_rate(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    lines = LogLines("explain_latents", "latents", clock)
    clock.now += 300
    lines(1, 50)
    assert told(caplog) == ["explain_latents: 1 of 50 latents"]


def test_short_work_logs_nothing_and_a_file_gets_no_bar(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with bar("score_latents", "questions") as progress:
        for done in range(1, 101):
            progress(done, 100)
    assert isinstance(progress, LogLines)
    assert told(caplog) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5_940, "99 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_has_at_most_two_figures(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_line_loads_no_progress_bar() -> None:
    probe = "import sys, nullsae.cli.main; print('rich.progress' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
