"""A warm start differs from a plain one only in the time that it takes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from workflow_study import Study

pytestmark = pytest.mark.workflow


@pytest.mark.parametrize(
    "command",
    [
        *("nullsae --version", "nullsae no_verb", "nullsae verdicts results"),
        *("nullsae evaluate_sae", "snakemake --version", "snakemake --cores 1 no_target"),
    ],
)
def test_a_warm_start_answers_like_a_plain_one(tree: Path, tmp_path: Path, command: str) -> None:
    warm, cold = (Study(tmp_path, tree, cold=cold).run(command.split()) for cold in (False, True))
    assert warm.returncode == cold.returncode
    assert warm.stdout == cold.stdout


def test_code_of_another_copy_is_loaded_from_there(tree: Path, tmp_path: Path) -> None:
    edited = tmp_path / "tree"
    shutil.copytree(tree, edited)
    file = edited / "src/nullsae/cli/main.py"
    begin = "def main() -> None:\n"
    file.write_text(file.read_text().replace(begin, f"{begin}    1 / 0\n"))
    said = Study(tmp_path, edited).run(["nullsae", "--version"]).stdout
    assert "ZeroDivisionError" in said
    assert str(file) in said
    assert Study(tmp_path, tree).run(["nullsae", "--version"]).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_a_job_that_was_started_warm(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Its code is a package of the test: the `nullsae` on the job's path runs."""
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
    process, end = Path("/proc") / (tmp_path / "pid").read_text(), time.monotonic() + 10
    while process.exists():  # until the server has asked how it ended
        assert time.monotonic() < end
        time.sleep(0.01)
