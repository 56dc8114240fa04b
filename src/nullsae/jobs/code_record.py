"""Which files each hash of code covers: `results/code.json`.

A hash alone cannot tell which files an upgrade changed. So before its jobs start, a run records the
files of each hash; the records of earlier runs stay.
"""

from __future__ import annotations

import json
from pathlib import Path

from nullsae import paths
from nullsae.core.files import write_json
from nullsae.jobs.code_hash import file_digests

Record = dict[str, dict[str, dict[str, str]]]

_noted: dict[str, dict[str, tuple[Path, ...]]] = {}


def note_code(rule: str, code: str, files: tuple[Path, ...]) -> None:
    """Note which files the hash of a rule's code covers, until `write_record`."""
    _noted.setdefault(rule, {})[code] = files


def noted_record() -> Record:
    """Return the digest of each file, by rule and hash, of what this process noted."""
    return {
        rule: {code: file_digests(*files) for code, files in codes.items()}
        for rule, codes in _noted.items()
    }


def noted_files(rule: str, code: str) -> dict[str, str]:
    """Return the digest of each file of a rule's hash; empty if this process did not note it."""
    return file_digests(*_noted.get(rule, {}).get(code, ()))


def read_record(root: Path) -> Record:
    """Read the digest of each file, by rule and hash, of what runs below `root` noted.

    Empty if there is no record: it only explains, and nothing is computed from it.
    """
    try:
        found = json.loads((root / paths.CODE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(root: Path) -> None:
    """Add what this process noted to the record below `root`."""
    before = read_record(root)
    found = {
        rule: before.get(rule, {}) | codes for rule, codes in {**before, **noted_record()}.items()
    }
    if found != before:
        write_json(root / paths.CODE, found)


def changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the files that differ between two hashes, each with `changed`, `new` or `gone`."""
    words = []
    for name in sorted(before.keys() | now.keys()):
        if name not in before:
            words.append(f"{name} (new)")
        elif name not in now:
            words.append(f"{name} (gone)")
        elif before[name] != now[name]:
            words.append(f"{name} (changed)")
    return words
