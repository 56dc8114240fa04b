"""Config files: merged and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.plain import read_yaml
from nullsae.config.study import Config
from nullsae.core.errors import UserError


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
        given = read_yaml(file)
        if not isinstance(given, dict):
            raise UserError(f"{file}: not a config; it has keys such as `subjects:`")
        merged = merge(merged, given)
    merged = merge(merged, more or {})
    return resolve_subjects(parse_config(merged))


def merge(below: Any, above: Any) -> Any:
    """Two values of a config as one: mappings key by key, of all else the one above."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}
