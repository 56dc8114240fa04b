"""Read, merge and check config files."""

from __future__ import annotations

import os
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
# `nullsae init` writes it into a study's folder: only what differs from the base config.
OVERLAY = "study.yaml"


def study_files(folder: Path, more: Iterable[Path] = ()) -> list[Path]:
    """Return the config files of a study, in merge order.

    They are the folder's `config.yaml`, or else nullsae's own; the folder's `study.yaml`, if it has
    one; and `more`.

    Raises:
        UserError: one of these is there, but not a file; without it, another study would be read.
    """
    own, overlay = folder / BASE, folder / OVERLAY
    for file in (own, overlay):
        if os.path.lexists(file) and not file.is_file():
            raise UserError(f"{file}: not a file, or a broken link; put the config itself there")
    base = own if own.is_file() else workflow_folder() / BASE
    return [base, *([overlay] if overlay.is_file() else []), *more]


def way_to_run(study: Path, does: str) -> str:
    """Say that `nullsae run` on a folder does something, or that the folder needs a study first."""
    if any((study / name).is_file() for name in (OVERLAY, BASE)):
        return f"`nullsae run {quote(str(study))}` {does}"
    return f"{study} is no study; `nullsae init {quote(str(study))}` writes one there"


def read_merged_config(files: list[Path], more: Mapping[str, Any] | None = None) -> Config:
    """Merge config files as Snakemake does, key by key, and check the result.

    Args:
        files: in merge order.
        more: values to merge last, such as those of `--config`.

    Raises:
        UserError: a file cannot be read, or the config has a mistake.
    """
    merged: Any = {}
    for file in files:
        merged = merge(merged, read_config(file))
    merged = merge(merged, more or {})
    return resolve_subjects(parse_config(merged))


def read_config(file: Path) -> dict[str, Any]:
    """Read one config file; an empty one gives an empty mapping.

    Raises:
        UserError: it cannot be read, or is not a mapping.
    """
    given = read_yaml(file)
    if given is not None and not isinstance(given, dict):
        raise UserError(f"{file}: not a config; it has keys such as `subjects:`")
    return given or {}


def giver(files: Sequence[Path], key: str) -> Path:
    """Return the last of several merged files that gives a key, or most of the way to it.

    Args:
        files: in merge order; at least one.
        key: dotted. Names of entries may also contain dots.
    """
    return max(reversed(files), key=lambda file: _given_characters(read_config(file), key))


def _given_characters(section: Any, key: str) -> int:
    """Return how many characters of a dotted key a section has."""
    names = section if isinstance(section, Mapping) else ()
    found = [n for n in map(str, names) if key == n or key.startswith(f"{n}.")]
    return max(
        (len(n) + 1 + _given_characters(section.get(n), key[len(n) + 1 :]) for n in found),
        default=0,
    )


def merge(below: Any, above: Any) -> Any:
    """Merge two config values: mappings key by key, otherwise the one above wins."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}
