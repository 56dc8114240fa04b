"""Code that counts as older code: `results/accepted.json`, which `nullsae accept` writes.

A result is identified by the hash of the code that made it. An upgrade changes the hash even if it
changes no result. An acceptance records, job by job, that the current code counts as the code that
made the job's files. So jobs whose files were made by different versions keep their own hashes, new
cells get that of the current code, and code that changes once more is a change again, because no
acceptance names it. Keys of activations contain hashes of code, and so have their own entries: new
SAEs are trained on the existing activations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from nullsae import paths
from nullsae.config.parse import parse_section
from nullsae.config.section import Section
from nullsae.core.errors import UserError
from nullsae.core.files import write_json

ALL = "all"
"""Name of a job without keys."""


class AcceptedCode(Section):
    """Jobs of one rule whose files were made by other than the current code."""

    rule: str
    present: str
    """Hash of the code that was accepted."""
    accepted: str
    """Hash of the older code that it counts as."""
    files: tuple[str, ...] = ()
    """The files in which the two differ."""
    jobs: tuple[str, ...]
    """Keys of the jobs, as in the paths of their files."""


class Acceptance(Section):
    """What one call of `nullsae accept` recorded."""

    date: str
    nullsae: str
    """Version of the package at that time."""
    codes: tuple[AcceptedCode, ...]
    activations: dict[str, str] = Field(default_factory=dict)
    """Keys of activations by the current code, and by the code that captured them."""


class AcceptedFile(Section):
    """Content of `results/accepted.json`, the oldest acceptance first."""

    acceptances: tuple[Acceptance, ...] = ()


@dataclass
class Accepted:
    """Current hashes and keys, and the older ones that they count as."""

    codes: dict[tuple[str, frozenset[tuple[str, str]], str], str] = field(default_factory=dict)
    """The older hash by rule, keys of the job, and current hash."""
    keys: dict[str, str] = field(default_factory=dict)
    """Older keys of shards of activations by the current ones."""

    def add(self, acceptance: Acceptance) -> None:
        """Add an acceptance; it overrides earlier ones of the same jobs."""
        for found in acceptance.codes:
            for job in found.jobs:
                self.add_code(found.rule, job_keys(job), found.present, found.accepted)
        self.keys |= acceptance.activations

    def add_code(self, rule: str, keys: Mapping[str, Any], present: str, accepted: str) -> None:
        """Make a job's current code count as older code."""
        self.codes[rule, _key(keys), present] = accepted

    def code(self, rule: str, keys: Mapping[str, Any], present: str) -> str:
        """Return the hash that a job's code, with the current hash `present`, counts as."""
        if not self.codes:
            return present
        return self.codes.get((rule, _key(keys), present), present)

    def key(self, present: str) -> str:
        """Return the key that shards of activations, with the current key `present`, count as."""
        return self.keys.get(present, present)


_in_use = Accepted()


def in_use() -> Accepted:
    """Return what the current process honours; nothing before `honour` was called."""
    return _in_use


def honour(accepted: Accepted) -> None:
    """Make the builders of params honour what was accepted."""
    global _in_use
    _in_use = accepted


def read_acceptances(root: Path) -> tuple[Acceptance, ...]:
    """Read the acceptances below `root`, the oldest first.

    Raises:
        UserError: the file is damaged.
    """
    file = root / paths.ACCEPTED
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: not readable ({error}); restore it, or remove it to run the accepted jobs "
            "again"
        ) from None
    return parse_section(AcceptedFile, found, where=str(file)).acceptances


def read_accepted(root: Path) -> Accepted:
    """Read what was accepted below `root`."""
    found = Accepted()
    for acceptance in read_acceptances(root):
        found.add(acceptance)
    return found


def append_acceptance(root: Path, acceptance: Acceptance) -> None:
    """Record an acceptance below `root`."""
    found = AcceptedFile(acceptances=(*read_acceptances(root), acceptance))
    write_json(root / paths.ACCEPTED, found.model_dump(mode="json"))


def job_name(keys: Mapping[str, Any]) -> str:
    """Return the keys of a job as one text; those that are None have no value."""
    return "/".join(f"{n}={'' if v is None else v}" for n, v in keys.items()) or ALL


def job_keys(name: str) -> dict[str, Any]:
    """Parse the keys of a job from its `job_name`."""
    pairs = (part.partition("=") for part in name.split("/") if name != ALL)
    return {key: value or None for key, _, value in pairs}


def _key(keys: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((name, str(value)) for name, value in keys.items() if value is not None)


def accepted_jobs(acceptances: Iterable[Acceptance]) -> Iterator[tuple[str, str, str, str]]:
    """Yield rule, keys, current and older hash of each accepted job; the last acceptance counts."""
    last: dict[tuple[str, str, str], str] = {}
    for acceptance in acceptances:
        for found in acceptance.codes:
            last |= {(found.rule, job, found.present): found.accepted for job in found.jobs}
    for (rule, job, present), accepted in last.items():
        yield rule, job, present, accepted
