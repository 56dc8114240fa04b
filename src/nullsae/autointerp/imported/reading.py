"""Reads foreign files with limits; each mistake is one line that names file and row."""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from nullsae.autointerp.llm.messages import without_halves
from nullsae.core.errors import UserError, first_line
from nullsae.core.files import read_small

# Limits for a file, for a line or JSON text in it, and for the number of files in a folder.
# Neuronpedia's largest have about ten megabytes of text; gzip can expand a thousandfold.
MOST_BYTES = 2 << 30
MOST_LINE_BYTES = 64 << 20
MOST_FILES = 1_000_000
# Characters of a value shown in a message.
SHOWN_CHARACTERS = 60


def fail(where: object, what: str) -> NoReturn:
    """Raise a `UserError` about one row."""
    raise UserError(f"{where}: {what}")


def shown(value: Any) -> str:
    """Return a value of a file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file, decompressed if its name ends in `.gz`.

    Raises:
        UserError: it is missing, not a file, or damaged.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            fail(path, "not a file")
        packed = path.suffix == ".gz"
        with cast(IO[bytes], gzip.open(path) if packed else open(path, "rb")) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        fail(path, f"cannot be read ({first_line(error)})")


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the place and the content of each line."""
    n_bytes, number = 0, 0
    with opened(path) as stream:
        while line := stream.readline(MOST_LINE_BYTES + 1):
            number += 1
            n_bytes += len(line)
            where = f"{path}, line {number}"
            if len(line) > MOST_LINE_BYTES:
                fail(where, f"longer than {MOST_LINE_BYTES:,} bytes, too long for a row")
            if n_bytes > MOST_BYTES:
                fail(where, f"the file has more than {MOST_BYTES:,} bytes, which is too large")
            yield where, line


def json_file(path: Path) -> Any:
    """Read a JSON file, decompressed if its name ends in `.gz`."""
    if path.suffix == ".gz":
        with opened(path) as stream:
            data = stream.read(MOST_LINE_BYTES + 1)
        if len(data) > MOST_LINE_BYTES:
            fail(path, f"longer than {MOST_LINE_BYTES:,} bytes; write JSON lines (.jsonl)")
        return json_value(data, path)
    try:
        return json_value(read_small(path, MOST_LINE_BYTES), path)
    except OSError as error:
        fail(path, f"cannot be read ({first_line(error)})")


def json_value(data: bytes | str, where: object) -> Any:
    """Parse JSON text; NaN and Infinity, which JSON does not have, are refused."""
    try:
        value = json.loads(data, parse_constant=_no_number)
        text = data if isinstance(data, str) else data.decode("latin-1")
        if "\\ud" in text.lower():  # escapes may be halves of surrogate pairs
            value = json.loads(without_halves(json.dumps(value, ensure_ascii=False)))
        return value
    except RecursionError:
        fail(where, "not JSON: nested too deeply")
    except ValueError as error:
        fail(where, f"not JSON ({first_line(error)})")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder whose names match, sorted by name."""
    found = []
    for path in folder.glob(pattern):
        found.append(path)
        if len(found) > MOST_FILES:
            fail(folder, f"more than {MOST_FILES:,} files, more than an SAE has latents")
    return sorted(found)


def latent_of(value: Any, n_latents: int, where: object) -> int:
    """Parse the number of a latent, written as a number or as text, in tables perhaps as 12.0."""
    text = str(value).strip().removesuffix(".0")
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 18:
        fail(where, f"{shown(value)} is not the number of a latent, such as 12")
    latent = int(text)
    if latent >= n_latents:
        fail(
            where,
            f"latent {latent}, but this SAE has {n_latents} (0 to {n_latents - 1}): is the file "
            f"about another one?",
        )
    return latent


def share_of(value: Any, name: str, where: object) -> float:
    """Parse a probability or score from 0 to 1."""
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        fail(where, f"{name} {shown(value)} is not a number from 0 to 1")
    if not math.isfinite(number) or not 0 <= number <= 1:
        fail(where, f"{name} {shown(value)} is not a number from 0 to 1")
    return number


def flag_of(value: Any, name: str, where: object) -> bool:
    """Parse a yes or no, written as a word or as a number."""
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0", "1.0", "0.0"):
        fail(where, f"{name} {shown(value)} is neither true nor false")
    return word in ("true", "1", "1.0")


def list_of(value: Any, kind: type, name: str, where: object) -> list[Any]:
    """Parse a list of texts or of finite numbers, given as such or as JSON text."""
    found = json_value(value, where) if isinstance(value, str) else value
    if not isinstance(found, list):
        fail(where, f"{name} is not a list")
    if kind is str:
        if all(isinstance(item, str) for item in found):
            return found
        fail(where, f"{name} is not a list of texts")
    for item in found:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            fail(where, f"{name} holds {shown(item)}, which is not a finite number")
    return [float(item) for item in found]
