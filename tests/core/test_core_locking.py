"""Locks keep a second process out exactly as long as the first one lives."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nullsae.core.errors import UserError
from nullsae.core.locking import alone_at

HOLDER = """
import sys
from pathlib import Path
from nullsae.core.locking import alone_at
with alone_at([Path(sys.argv[1])]):
    print("in", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds a lock until it reads a line."""
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_second_process_exits_with_one_line_that_names_the_first(tmp_path: Path) -> None:
    file = tmp_path / "work/train.lock"
    with holder(file) as process:
        start = time.monotonic()
        with pytest.raises(UserError) as error, alone_at([file], wait_seconds=0.5):
            raise AssertionError("two are in")
        assert 0.5 <= time.monotonic() - start < 10
    said = str(error.value)
    assert said.startswith(f"{file}: process {process.pid} on {socket.gethostname()} (since 20")
    assert said.endswith(
        f"is already working on this; wait for it to finish, or stop it with "
        f"`kill {process.pid}` there, and run again: finished work is kept"
    )
    assert "\n" not in said


def test_a_process_that_ends_in_time_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "lock"
    with holder(file) as process:
        assert process.stdin is not None
        process.stdin.write("end\n")
        process.stdin.flush()
        with alone_at([file], wait_seconds=60):
            process.wait(60)
    waits = [line for line in caplog.messages if line.startswith("waiting up to 60 s for process")]
    assert len(waits) <= 1
    assert not file.exists()


def test_the_lock_of_a_killed_process_keeps_nobody_out(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with holder(file) as process:
        process.kill()
        process.wait()
        assert file.exists(), "it was not killed in the middle"
        with alone_at([file], wait_seconds=0):
            assert f'"pid": {os.getpid()}' in file.read_text()
    assert not file.exists()


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with pytest.raises(KeyboardInterrupt), alone_at([file]):
        raise KeyboardInterrupt
    assert not file.exists()
    with alone_at([file], wait_seconds=0):
        pass


def test_a_failure_leaves_no_folders_that_were_made_for_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "deep/er/lock"
    with pytest.raises(ValueError, match="bad"), alone_at([file, tmp_path / "deep/lock"]):
        raise ValueError("bad")
    assert list(tmp_path.iterdir()) == []
    result = tmp_path / "deep/result"
    with suppress(KeyboardInterrupt), alone_at([file, result.with_name("a")]):
        result.write_text("kept")
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", tmp_path / "deep/result"]


def test_no_lock_is_kept_if_one_of_several_is_taken(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    with alone_at([files[1]]):
        with pytest.raises(UserError, match="/b: process"), alone_at(files, wait_seconds=0):
            raise AssertionError("two are in")
        assert [file.exists() for file in files] == [False, True, False]
        with alone_at([files[0], files[2]], wait_seconds=0):
            pass


def test_an_unreadable_lock_file_still_locks(tmp_path: Path) -> None:
    """Its holder has only just opened it, or it was damaged."""
    file = tmp_path / "lock"
    for text in ("", "[]", '{"pid": 1}'):
        with open(file, "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(text)
            stream.flush()
            said = "another process is already working on this; wait for it to finish, or stop it,"
            with pytest.raises(UserError, match=said), alone_at([file], wait_seconds=0):
                raise AssertionError("two are in")


COUNTER = """
import sys
from pathlib import Path
from nullsae.core import locking
locking.LOOK_SECONDS = 0.0
folder = Path(sys.argv[1])
for i in range(int(sys.argv[2])):
    with locking.alone_at([folder / "b", folder / "a"][:: 1 if i % 2 else -1]):
        count = folder / "count"
        count.write_text(str(int(count.read_text()) + 1))
"""


def test_two_processes_never_hold_the_same_locks_at_once(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", COUNTER, str(tmp_path), "200"]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(100) for process in processes] == [0] * 3
    assert (tmp_path / "count").read_text() == "600"
    assert [file.name for file in tmp_path.iterdir()] == ["count"]


def test_releasing_a_deleted_lock_leaves_the_lock_of_another_process(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with alone_at([file]):
        file.unlink()
        other = holder(file)
        other.__enter__()
    assert file.exists()
    with pytest.raises(UserError, match="is already working"), alone_at([file], wait_seconds=0):
        raise AssertionError("two are in")
    other.__exit__(None, None, None)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_without_file_locks_work_continues_with_one_warning(
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), alone_at([tmp_path / "a", tmp_path / "b"]) as alone:
        assert not alone.certain
    [said] = caplog.messages
    assert said.startswith(f"warning: {tmp_path}/a: the file system has no locks (")
    monkeypatch.undo()
    with alone_at([tmp_path / "a"], wait_seconds=0) as alone:
        assert alone.certain


def test_a_folder_deleted_meanwhile_is_created_again(tmp_path: Path) -> None:
    file = tmp_path / "work/lock"
    with alone_at([file]):
        file.unlink()
        file.parent.rmdir()
    with alone_at([file]):
        assert file.exists()
