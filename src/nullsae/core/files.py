"""Atomic writing of files, and checks of their content."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xxhash

from nullsae.core.errors import UserError, first_line
from nullsae.core.home import place_of

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = tuple(os.strerror(number) for number in FULL_DISK)

# The longest file written by a stage or a person that is read into memory at once.
MOST_JSON_BYTES = 256 << 20
PIECE_BYTES = 1 << 20
# Permissions of what no other user of the machine may read.
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700

# The variable with the command-line options that identify the running study (`jobs.started`).
STARTED_WITH = "NULLSAE_STARTED_WITH"


FULL = "the disk is full; free some space and run again: finished work is kept"


def is_full(error: BaseException) -> bool:
    """Return whether an error means that a disk is full, whichever library raised it."""
    # Some libraries report it only in the text, under another type of exception.
    full = getattr(error, "errno", None) in FULL_DISK
    return full or any(text in str(error) for text in FULL_TEXTS)


@contextmanager
def room_for(path: Path | str) -> Iterator[None]:
    """Raise a one-line error if the disk fills up while the block writes `path`.

    Raises:
        UserError: the disk is full; replaces the exception of the writing library.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise UserError(f"{path}: {FULL}") from None


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name next to `path`; rename it to `path` if the block succeeds.

    A reader, or a run after a kill, never sees a half-written file. Missing folders are created.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    # The suffix stays last: some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        with room_for(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # an error here would hide why writing failed
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield the name of a folder to create; it replaces `folder` if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / folder.name
        yield made
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def drop_partial(path: Path) -> None:
    """Delete what killed processes left of a file, or of the files in a folder.

    Call it only while no process is writing `path`.
    """
    left = [*path.parent.glob(f".{glob.escape(path.stem)}.*.partial*"), *path.rglob(".*.partial*")]
    for file in left:
        file.unlink(missing_ok=True)


def write_text(path: Path | str, text: str, *, private: bool = False) -> None:
    """Write `text` as UTF-8, atomically; if `private`, only this user can read it."""
    with atomic_path(path) as temporary:
        if private:
            temporary.touch(PRIVATE_FILE)
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically. Equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_small(path: Path | str, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """Read the bytes of a regular file of at most `most_bytes`.

    Raises:
        OSError: the file cannot be opened.
        UserError: it is too long, or is a folder, a device or a pipe, which may have no end.
    """
    # Opening a pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UserError(f"{path}: not a file but {_kind(mode)}")
    data = bytearray()
    with open(descriptor, "rb") as stream:
        # In pieces, because a single read of the maximum would allocate that much memory.
        while piece := stream.read(PIECE_BYTES):
            data += piece
            if len(data) > most_bytes:
                raise UserError(f"{path}: more than {most_bytes:,} bytes, too long for such a file")
    return bytes(data)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"


def read_json(path: Path | str, *, rebuild: str) -> Any:
    """Read a JSON file written by an earlier stage.

    Raises:
        UserError: the file is missing or not JSON; names it and the `rebuild` command.
    """
    try:
        return json.loads(read_small(path))
    except FileNotFoundError:
        raise UserError(f"{path}: the file is missing; rebuild it with: {rebuild}") from None
    except (ValueError, RecursionError) as error:
        message = f"{path}: not readable as JSON ({first_line(error)}); rebuild it with: {rebuild}"
        raise UserError(message) from None


def checksum(path: Path | str) -> str:
    """Return the XXH3-128 of a file's bytes as hex: it detects corruption, not malice."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def verify(path: Path | str, expected: str, *, rebuild: str) -> None:
    """Compare a file with the checksum in its manifest.

    Raises:
        UserError: the file is missing or its bytes differ; names it and the `rebuild` command.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: the file is missing; rebuild it with: {rebuild}")
    if checksum(path) != expected:
        damage = f"damaged ({path.stat().st_size} bytes, checksum differs from the manifest's)"
        raise UserError(f"{path}: {damage}; rebuild it with: {rebuild}")


def rebuild_command(target: Path | str) -> str:
    """Return the Snakemake command that makes a file of this study again.

    For a verb started by hand, the study is found from the file's path.
    """
    options = os.environ.get(STARTED_WITH)
    if options is None:
        options, target = _by_path(Path(target))
    start = f"snakemake --cores all --resources gpu=1 {options}".rstrip()
    file = shlex.quote(str(target))
    return f"{start} --forcerun {file} -- {file}"


def _by_path(target: Path) -> tuple[str, Path]:
    """Return the options that name a file's study, and the file's path within that study."""
    if "results" not in target.parts:
        return "", target
    at = len(target.parts) - 1 - target.parts[::-1].index("results")
    study, file = Path(*target.parts[:at]), Path(*target.parts[at:])
    if study == Path() and Path("Snakefile").is_file():
        return "", file
    return shlex.join(place_of(study)), file


def content_key(value: Any) -> str:
    """Return a short stable key (16 hex digits) of a JSON-serializable value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


def key_in(file: Path) -> Any:
    """Return the `content_key` in a manifest or a `cfg.json`; None if there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
