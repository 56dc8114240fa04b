"""Files outside `results/` that jobs read: an edit of one must run the jobs again.

They count by name and bytes: touching or copying a file, or moving its folder, runs nothing again.
The hash of a file is cached by its path, size and time in the user's cache folder, so that large
files are read once rather than by each dry run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from glob import escape, glob
from pathlib import Path

import xxhash

from nullsae.config.model_files import find_gguf, is_local
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.core.errors import UserError
from nullsae.core.files import checksum, write_text
from nullsae.core.folders import expanded
from nullsae.core.home import cache_folder
from nullsae.core.visible import visible

# A file that changed this recently may change again without a new time or size.
SETTLED_NANOSECONDS = 2 * 10**9
# Reading a file of at least this size is announced.
LARGE_BYTES = 2 * 10**9


def stamps(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return name and hash of the files that match, sorted by path."""
    files = {Path(name) for pattern in patterns for name in glob(pattern, recursive=True)}
    return tuple(f"{file.name} {content(file)}" for file in sorted(files) if file.is_file())


def path_stamps(path: str) -> tuple[str, ...]:
    """Return `stamps` of one file, or a single stamp of all files in a folder."""
    found = stamps([named_file(path)])
    if not expanded(path).is_dir():
        return found
    inside = stamps([f"{named_file(path)}/**/*"])
    digest = xxhash.xxh3_128_hexdigest("\n".join(inside).encode())
    return (f"{Path(path).name}: {len(inside)} files {digest}",)


def content(file: Path) -> str:
    """Return XXH3-128 of a file's bytes as hex; it is reread only if its size or time changed."""
    stat = file.stat()
    return _content(str(file.resolve()), stat.st_size, stat.st_mtime_ns)


@cache
def _content(path: str, n_bytes: int, time_ns: int) -> str:
    note = Path(cache_folder(), "nullsae/file_hashes", xxhash.xxh3_128_hexdigest(path.encode()))
    known = f"{n_bytes} {time_ns} "
    try:
        text = note.read_text(encoding="ascii")
        if text.startswith(known):
            return text.removeprefix(known)
    except (OSError, ValueError):
        pass
    if n_bytes >= LARGE_BYTES:
        said = f"{path}: reading {n_bytes / 1e9:.0f} GB to hash its bytes"
        print(visible(said), file=sys.stderr)
    digest = checksum(path)
    if time.time_ns() - time_ns > SETTLED_NANOSECONDS:
        with suppress(OSError, UserError):  # otherwise it is just read again
            write_text(note, known + digest)
    return digest


def named_file(path: str | Path) -> str:
    """Return the pattern of one file."""
    return escape(str(expanded(path)))


def folder_files(path: str) -> list[str]:
    """Return the pattern of all files in a local model or tokenizer folder; none for a hub id."""
    return [f"{named_file(path)}/*"] if is_local(path) else []


def model_files(
    source: TrainSource | PretrainedSource | GgufSource | None, where: str
) -> list[str]:
    """Return patterns of the local files that a model is read from."""
    if isinstance(source, GgufSource):
        return [named_file(find_gguf(source, where=where))]
    return folder_files(source.path) if isinstance(source, PretrainedSource) else []
