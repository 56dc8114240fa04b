"""Folders that others filled: what may be read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nullsae.core.errors import UserError, first_line

# What libraries read of a model, a tokenizer or an SAE.
SUFFIXES = (".json", ".safetensors", ".bin", ".py", ".txt", ".jinja", ".model", ".tiktoken")
# The index of a model with 100,000 tensors has 10 MB, its config less than one.
MAX_JSON_BYTES = 64_000_000


def check_files(folder: Path, *, where: str) -> None:
    """Make sure that what is read of a folder are files, and lies in it.

    Links may lead elsewhere within the folder. In a snapshot of the hub's cache, they may lead to
    the blobs of that repository.

    Raises:
        UserError: one that is no file, or a link out of the folder; begins with `where`.
    """
    allowed = [folder.resolve(), *_blobs(folder.resolve())]
    for file in sorted(folder.iterdir()):
        if not file.name.endswith(SUFFIXES) or (file.is_dir() and not file.is_symlink()):
            continue
        if not file.is_file():
            raise UserError(f"{where}: {str(file)!r} is no file, or a link to nothing")
        target = file.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise UserError(
                f"{where}: {str(file)!r} is a link to {str(target)!r}, outside of the folder; put "
                f"the file itself there"
            )


def _blobs(folder: Path) -> list[Path]:
    """Where the files of a snapshot lie: `models--X--Y/snapshots/COMMIT/...` has links there."""
    return [
        inner.parents[1] / "blobs"
        for inner in (folder, *folder.parents)
        if inner.parent.name == "snapshots" and "--" in inner.parents[1].name
    ]


def read_foreign_json(file: Path, *, where: str) -> dict[str, Any]:
    """The JSON object in a file that others wrote.

    Raises:
        UserError: it is no such object, or larger than any that is honest; begins with `where`.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise UserError(f"{where}: more than {MAX_JSON_BYTES:,} bytes")
        found = json.loads(data)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: not a JSON object")
    return found
