"""Which files each hash of code stands for: `results/code.json`.

A hash alone cannot say which files an upgrade changed. So a run notes, before its jobs begin, what
the code of its rules is made of; what earlier runs noted stays.
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
    """Remember which files the hash of a rule's code is of, until `write_record`."""
    _noted.setdefault(rule, {})[code] = files


def noted_record() -> Record:
    """Per rule and hash that this process worked out, the digest of each file."""
    return {
        rule: {code: file_digests(*files) for code, files in codes.items()}
        for rule, codes in _noted.items()
    }


def noted_files(rule: str, code: str) -> dict[str, str]:
    """The digest of each file that a hash of a rule's code is of; none for one not worked out."""
    return file_digests(*_noted.get(rule, {}).get(code, ()))


def read_record(root: Path) -> Record:
    """Per rule and hash that a run below `root` worked out, the digest of each file.

    Empty where there is none: it only explains, and nothing is computed from it.
    """
    try:
        found = json.loads((root / paths.CODE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(root: Path) -> None:
    """Add what this process worked out to the record below `root`."""
    before = read_record(root)
    found = {
        rule: before.get(rule, {}) | codes for rule, codes in {**before, **noted_record()}.items()
    }
    if found != before:
        write_json(root / paths.CODE, found)


def changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The files that two hashes of one rule differ in, each with `changed`, `new` or `gone`."""
    words = []
    for name in sorted(before.keys() | now.keys()):
        if name not in before:
            words.append(f"{name} (new)")
        elif name not in now:
            words.append(f"{name} (gone)")
        elif before[name] != now[name]:
            words.append(f"{name} (changed)")
    return words
