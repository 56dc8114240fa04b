"""A warm start differs from a plain one only in the time that it takes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import sys, __main__ as m; print(sys.argv, sys.path[0], __name__, m.m is m)"],
        *(["-c", "raise SystemExit('one line')", "x"], ["-c", "1 / 0"], ["-m", "this", "x"]),
        *(["-m", "timeit", "-no", "x"], ["-I", "-c", "import sys; print(sys.path[0])"]),
        *(["-c", "import os; os.kill(os.getpid(), 9)"], ["file.py", "a"], ["-V"]),
    ],
)
def test_python_starts_warm_like_plain(
    warm_commands: Path, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "beside.py").write_text("name = 'beside'\n")
    program = "import sys, beside; print(sys.argv, sys.path[0], __name__, __file__, beside.name)\n"
    (tmp_path / "file.py").write_text(program)
    warm, cold = (
        subprocess.run(
            [python, *arguments],
            cwd=tmp_path,
            env=Study(tmp_path, tmp_path).environment | {"PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        for python in (warm_commands / "python", sys.executable)
    )
    assert warm.returncode == cold.returncode
    assert warm.stdout == cold.stdout
    assert warm.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


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
