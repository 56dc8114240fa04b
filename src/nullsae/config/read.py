"""Config files: read, merged, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.study import Config
from nullsae.core.errors import UserError


def read_yaml(path: Path) -> Any:
    """The content of a YAML or JSON file.

    Raises:
        UserError: not there, or not readable; names the file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


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
        merged = _merge(merged, given)
    merged = _merge(merged, dict(more or {}))
    return resolve_subjects(parse_config(merged))


def _merge(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merge(below.get(key), value) for key, value in above.items()}
