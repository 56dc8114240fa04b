"""Files outside of `results/` that jobs read: an edit of one must run them again."""

from __future__ import annotations

from collections.abc import Iterable
from glob import escape, glob
from pathlib import Path

from nullsae.config.model_files import find_gguf, is_local
from nullsae.config.section import Kind
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.jobs.params import pretrained_sae_path


def stamps(patterns: Iterable[str]) -> tuple[str, ...]:
    """Name, size and time of the files that match, in order of their names."""
    files = {Path(name) for pattern in patterns for name in glob(pattern, recursive=True)}
    stats = ((file, file.stat()) for file in sorted(files) if file.is_file())
    return tuple(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)


def folder_files(path: str) -> list[str]:
    """The pattern of all files in a local model or tokenizer folder; none for a hub id."""
    return [f"{escape(str(Path(path).expanduser()))}/*"] if is_local(path) else []


def sae_files(pretrained: str | None, site: str) -> list[str]:
    """Patterns of a local pretrained SAE's files."""
    if pretrained is None:
        return []
    path, inside = pretrained_sae_path(pretrained, site)
    return folder_files(str(Path(path) / inside)) if is_local(path) else []


def model_files(
    source: TrainSource | PretrainedSource | GgufSource | None, where: str
) -> list[str]:
    """Patterns of the local files that a model is read from."""
    if isinstance(source, GgufSource):
        return [escape(str(find_gguf(source, where=where)))]
    return folder_files(source.path) if isinstance(source, PretrainedSource) else []


def prompt_stamps(section: Kind) -> tuple[str, ...]:
    """The stamps of the user's own files that an explainer or scorer reads, such as a prompt."""
    return stamps(escape(str(Path(file).expanduser())) for file in section.local_files)
