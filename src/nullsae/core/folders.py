"""Folders that people name, and checks of those that somebody else filled."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from nullsae.core.errors import UserError

# The files of a model, a tokenizer or an SAE that libraries read.
SUFFIXES = (".json", ".safetensors", ".bin", ".pt", ".py", ".txt", ".jinja", ".model", ".tiktoken")


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder for its `~` or `~user`.

    As in a shell, a user who does not exist has none, and the path stays as it is.
    """
    return Path(os.path.expanduser(path))


def matching(pattern: str) -> list[Path]:
    """Return the files that a name or a glob pattern means, as a corpus reads them.

    A name with brackets is literal if such a file exists, else a pattern.
    """
    literal = expanded(pattern)
    if literal.is_file():
        return [literal]
    found = map(Path, glob.glob(str(literal), recursive=True))
    return [file for file in found if file.is_file()]


def check_files(folder: Path, *, where: str) -> None:
    """Check that everything in a folder is a file that lies within it.

    Links may point to places within the folder and, in a snapshot of the hub's cache, to the blobs
    of that repository.

    Raises:
        UserError: names an entry that is not a file, or a link out of the folder; starts with
            `where`.
    """
    allowed = [folder.resolve(), *_blobs(folder.resolve())]
    for file in sorted(folder.iterdir()):
        if not file.name.endswith(SUFFIXES) or (file.is_dir() and not file.is_symlink()):
            continue
        if not file.is_file():
            raise UserError(f"{where}: {str(file)!r} is not a file, or a broken link")
        target = file.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise UserError(
                f"{where}: {str(file)!r} is a link to {str(target)!r}, outside of the folder; put "
                f"the file itself there"
            )


def _blobs(folder: Path) -> list[Path]:
    """Return where a snapshot's files lie: `models--X--Y/snapshots/COMMIT/...` has only links."""
    return [
        inner.parents[1] / "blobs"
        for inner in (folder, *folder.parents)
        if inner.parent.name == "snapshots" and "--" in inner.parents[1].name
    ]
