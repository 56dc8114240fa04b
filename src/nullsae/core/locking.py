"""Locks that end with their process, so that only one process works on unfinished files.

Snakemake's own lock is not enough: a job outlives a killed Snakemake, and the next run does not
know of it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from nullsae.core.errors import UserError

logger = logging.getLogger(__name__)

# When SLURM requeues a job, it may start while its former self is still saving.
WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.2
HELD = (errno.EAGAIN, errno.EACCES)
"""Errors of a lock that another process holds; other errors mean that there are no locks here."""


@dataclass
class Alone:
    """The locks that `alone_at` holds."""

    certain: bool = True
    """Whether no other process is at work; False if the file system has no locks."""
    _held: list[tuple[Path, IO[str]]] = field(default_factory=list)
    _made: list[Path] = field(default_factory=list)
    """Folders that had to be created."""

    def take(self, file: Path) -> bool:
        """Take one lock; return False if another process holds it."""
        self._made += [folder for folder in file.parents if not folder.exists()]
        while True:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                stream = open(file, "a+", encoding="utf-8")  # noqa: SIM115
            except FileNotFoundError:  # another process has just deleted the empty folder
                continue
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                stream.close()
                if error.errno in HELD:
                    return False
                if self.certain:
                    logger.warning(
                        "warning: %s: the file system has no locks (%s); make sure that no other "
                        "process works on the same files",
                        *(file, error.strerror),
                    )
                self.certain = False
                file.unlink(missing_ok=True)
                return True
            # The previous holder may have deleted the file, so this lock would keep nobody out.
            if _is(file, stream):
                break
            stream.close()
        self._held.append((file, stream))
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with suppress(OSError):  # on a full disk, the lock works without this text
            stream.truncate(0)
            stream.write(json.dumps(own))
            stream.flush()
        return True

    def release(self, *, failed: bool = False) -> None:
        """Let others in; after a failure, remove created folders that are still empty.

        Each file is deleted before it is unlocked, because then it belongs to nobody.
        """
        for file, stream in self._held:
            if _is(file, stream):
                file.unlink(missing_ok=True)
            with suppress(OSError):
                stream.close()
        self._held.clear()
        deepest_first = sorted(self._made, key=lambda folder: -len(folder.parts))
        for folder in deepest_first if failed else ():
            with suppress(OSError):
                folder.rmdir()  # if it is empty


@contextmanager
def alone_at(files: Iterable[Path], wait_seconds: float | None = None) -> Iterator[Alone]:
    """Hold lock files within the block, so that no other process holds any of them.

    It waits for a process that holds one. However a process ends, its locks end with it; a leftover
    file blocks nobody.

    Args:
        files: names of lock files, created here and deleted at the end.
        wait_seconds: how long to wait for all of them together; `WAIT_SECONDS` by default.

    Raises:
        UserError: a process holds one for longer; names it, its host and what to do.
    """
    deadline = time.monotonic() + (WAIT_SECONDS if wait_seconds is None else wait_seconds)
    alone, said = Alone(), False
    try:
        # In sorted order, so that two jobs never wait for each other.
        for file in sorted(set(files)):
            while not alone.take(file):
                who, ended_by = _holder(file)
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise UserError(
                        f"{file}: {who} is already working on this; wait for it to finish, or stop "
                        f"it{ended_by}, and run again: finished work is kept"
                    )
                if not said:
                    logger.warning("waiting up to %.0f s for %s (%s)", rest, who, file)
                said = True
                time.sleep(min(LOOK_SECONDS, rest))
        yield alone
    except BaseException:
        alone.release(failed=True)
        raise
    alone.release()


def _is(file: Path, stream: IO[str]) -> bool:
    """Return whether an open file is still the one with that name."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _holder(file: Path) -> tuple[str, str]:
    """Describe who holds a lock, and how to stop it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        who = f"process {found['pid']} on {found['host']} (since {found['since']})"
        return who, f" with `kill {found['pid']}` there"
    except (OSError, ValueError, KeyError, TypeError):
        # The other process has only just started or ended.
        return "another process", ""
