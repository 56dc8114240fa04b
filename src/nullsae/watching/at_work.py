"""Finds the run that is at work in a study's folder, so that no other one starts there."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nullsae.core.errors import UserError
from nullsae.watching.events import FOLDER, SUFFIX

if TYPE_CHECKING:
    from nullsae.watching.run import Run

UNLOCK = "--unlock"
# Snakemake's error if it cannot lock a folder; the folder is on a line of its own.
LOCKED = re.compile(r"Error: Directory cannot be locked\..* following directory:\n(.+)\n")


def run_at_work(root: Path) -> Run | None:
    """Return the newest run of a study that is still going on this machine, or None."""
    from nullsae.watching.run import Run  # few starts of Snakemake need it

    for file in sorted((root / FOLDER).glob(f"*{SUFFIX}"), reverse=True):
        run = Run(root, file)
        try:
            if file.is_file():  # not a pipe
                run.update()
        except OSError:
            continue
        if run.plan and run.plan.host == socket.gethostname() and run.ended is None:
            return run
    return None


def check_unlock(root: Path, arguments: Sequence[str]) -> None:
    """Refuse to unlock the folder of a live run: a second one could start in it.

    Args:
        root: the folder of the study.
        arguments: Snakemake's command line.

    Raises:
        UserError: names the run.
    """
    if UNLOCK in arguments and (run := run_at_work(root)):
        raise UserError(f"{UNLOCK}: {_who(run)}")


def refusal(text: str) -> str | None:
    """Return why a folder is locked and what to do, in one line; None for any other error.

    Args:
        text: of Snakemake's error.
    """
    if not (found := LOCKED.search(text)):
        return None
    root = Path(found[1])
    if run := run_at_work(root):
        return f"{root}: cannot be locked: {_who(run)}"
    from nullsae.planning.dag import command_for

    return (
        f"{root}: cannot be locked: another Snakemake is running here or was killed; if killed, "
        f"remove its lock with `{command_for(root, UNLOCK)}`"
    )


def _who(run: Run) -> str:
    assert run.plan is not None
    since, pid = time.strftime("%H:%M", time.localtime(run.began)), run.plan.pid
    return (
        f"a run is running here (process {pid}, since {since}); wait for it, or stop it with "
        f"Ctrl-C or `kill {pid}`: finished work is kept"
    )
