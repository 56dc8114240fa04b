"""Snakemake's locks of a study's folder, for verbs that change what its jobs read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nullsae.core.errors import UserError
from nullsae.planning.dag import command_for

LOCKS = ".snakemake/locks"


def refuse_locks(root: Path, outcome: str, own: Path | None = None) -> None:
    """Refuse to continue if Snakemake is at work in a folder, or was killed there.

    Args:
        root: the folder of the study.
        outcome: what is therefore not done, in words.
        own: a lock to ignore.

    Raises:
        UserError: names a lock, and the command that removes what a killed one left.
    """
    if others := [lock for lock in (root / LOCKS).glob("*.lock") if lock != own]:
        raise UserError(
            f"{others[0]}: Snakemake is running here, so {outcome}; if it was killed, "
            f"run `{command_for(root, '--unlock')}` first"
        )


@contextmanager
def locked(root: Path, files: Iterable[str], outcome: str) -> Iterator[None]:
    """Keep Snakemake from files within the block, by a lock of its own kind.

    Args:
        root: the folder of the study.
        files: relative to it.
        outcome: what is not done if Snakemake is at work, in words.

    Raises:
        UserError: Snakemake is at work there.
    """
    own = root / LOCKS / f"{os.getpid()}.output.lock"
    own.parent.mkdir(parents=True, exist_ok=True)
    try:
        own.write_text("".join(f"{path}\n" for path in files), encoding="utf-8")
        refuse_locks(root, outcome, own)
        yield
    finally:
        own.unlink(missing_ok=True)
