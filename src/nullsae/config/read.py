"""Config files: merged and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.plain import read_yaml
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.home import workflow_folder

BASE = "config.yaml"
# What `nullsae init` writes into a study's folder: what differs from the base config.
OVERLAY = "study.yaml"


def study_files(folder: Path, more: Iterable[Path] = ()) -> list[Path]:
    """The config files of a study, in the order in which they are merged.

    They are the folder's `config.yaml`, or the one that nullsae comes with; the folder's
    `study.yaml`, if it has one; and `more`.
    """
    own, overlay = folder / BASE, folder / OVERLAY
    base = own if own.is_file() else workflow_folder() / BASE
    return [base, *([overlay] if overlay.is_file() else []), *more]


def way_to_run(study: Path, does: str) -> str:
    """Say that `nullsae run` on a folder does something, or what makes a study of it first."""
    if any((study / name).is_file() for name in (OVERLAY, BASE)):
        return f"`nullsae run {quote(str(study))}` {does}"
    return f"{study} is no study; `nullsae init {quote(str(study))}` makes one there"


def read_merged_config(files: list[Path], more: Mapping[str, Any] | None = None) -> Config:
    """Merge config files as Snakemake does, key by key, and check the result.

    Args:
        files: in the order in which they are merged.
        more: what is merged last, such as what `--config` gave.

    Raises:
        UserError: a file that cannot be read, or a mistake in the config.
    """
    merged: Any = {}
    for file in files:
        merged = merge(merged, read_config(file))
    merged = merge(merged, more or {})
    return resolve_subjects(parse_config(merged))


def read_config(file: Path) -> dict[str, Any]:
    """The content of one config file; nothing of an empty one.

    Raises:
        UserError: it cannot be read, or holds no keys.
    """
    given = read_yaml(file)
    if given is not None and not isinstance(given, dict):
        raise UserError(f"{file}: not a config; it has keys such as `subjects:`")
    return given or {}


def giver(files: Sequence[Path], key: str) -> Path:
    """The one of several merged files that gives a key, or most of the way to it: the last one.

    Args:
        files: in the order in which they are merged; at least one.
        key: dotted. The names of entries may have dots, too.
    """
    return max(reversed(files), key=lambda file: _given_characters(read_config(file), key))


def _given_characters(section: Any, key: str) -> int:
    """How much of a dotted key a section has."""
    names = section if isinstance(section, Mapping) else ()
    found = [n for n in map(str, names) if key == n or key.startswith(f"{n}.")]
    return max(
        (len(n) + 1 + _given_characters(section.get(n), key[len(n) + 1 :]) for n in found),
        default=0,
    )


def merge(below: Any, above: Any) -> Any:
    """Two values of a config as one: mappings key by key, of all else the one above."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}
