"""A warm start differs from a plain one in nothing but the time that it takes."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from workflow_study import Study

pytestmark = pytest.mark.workflow


@pytest.mark.parametrize(
    "arguments", [["--version"], ["no_verb"], ["verdicts", "results"], ["evaluate_sae"]]
)
def test_a_warm_start_answers_like_a_plain_one(
    tree: Path, tmp_path: Path, arguments: list[str]
) -> None:
    warm, cold = (
        Study(tmp_path, tree, cold=cold).run(["nullsae", *arguments]) for cold in (False, True)
    )
    assert warm.returncode == cold.returncode
    assert warm.stdout == cold.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_a_job_that_was_started_warm(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Its code is a package of the test: what runs is whatever `nullsae` the job's path has."""
    verbs = tmp_path / "src" / "nullsae" / "cli"
    verbs.mkdir(parents=True)
    for package in (verbs.parent, verbs):
        (package / "__init__.py").touch()
    (verbs / "main.py").write_text(
        "import os, pathlib, signal, time\n"
        "def main():\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(60)\n"
    )
    study = Study(tmp_path, tmp_path)
    with subprocess.Popen(
        ["nullsae"],
        cwd=tmp_path,
        env=study.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"at work\n"
        client.send_signal(number)
        assert client.wait(10) == -number
        assert client.stdout.read() == b""  # ends when the job has gone, too
    process = Path("/proc") / (tmp_path / "pid").read_text()
    assert not process.exists()
