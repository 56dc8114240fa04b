"""Files outside of `results/` that jobs read: an edit of one must run them again."""

from __future__ import annotations

from collections.abc import Iterable
from glob import escape, glob
from pathlib import Path

from nullsae.config.model_files import find_gguf, is_local
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource


def stamps(patterns: Iterable[str]) -> tuple[str, ...]:
    """Name, size and time of the files that match, in order of their names."""
    files = {Path(name) for pattern in patterns for name in glob(pattern, recursive=True)}
    stats = ((file, file.stat()) for file in sorted(files) if file.is_file())
    return tuple(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)


def named_file(path: str | Path) -> str:
    """The pattern of one file."""
    return escape(str(Path(path).expanduser()))


def folder_files(path: str) -> list[str]:
    """The pattern of all files in a local model or tokenizer folder; none for a hub id."""
    return [f"{named_file(path)}/*"] if is_local(path) else []


def model_files(
    source: TrainSource | PretrainedSource | GgufSource | None, where: str
) -> list[str]:
    """Patterns of the local files that a model is read from."""
    if isinstance(source, GgufSource):
        return [named_file(find_gguf(source, where=where))]
    return folder_files(source.path) if isinstance(source, PretrainedSource) else []
