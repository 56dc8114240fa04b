"""Code that counts as an older one: `results/accepted.json`, which `nullsae accept` writes.

A result is known by the hash of the code that made it. After an upgrade that changes no result, the
hash has changed all the same. An acceptance says, job by job, that the present code counts as the
code that the job's files were made by. So jobs whose files were made by different versions each
keep their own hash, new cells get that of the present code, and code that changes once more, which
no acceptance names, is a change again. Keys of activations, which are made from hashes of code,
have entries of their own: new SAEs are trained on the activations that are there.
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
"""Stands for the keys of a job that has none."""


class AcceptedCode(Section):
    """Jobs of one rule whose files were made by other code than the present."""

    rule: str
    present: str
    """Hash of the code that was accepted."""
    accepted: str
    """Hash of the older code that it counts as."""
    files: tuple[str, ...] = ()
    """What they differ in."""
    jobs: tuple[str, ...]
    """Their keys, as in the paths of their files."""


class Acceptance(Section):
    """What one call of `nullsae accept` recorded."""

    date: str
    nullsae: str
    """Version of the package at that time."""
    codes: tuple[AcceptedCode, ...]
    activations: dict[str, str] = Field(default_factory=dict)
    """Keys of activations by the present code, and by the code that captured them."""


class AcceptedFile(Section):
    """What stands in `results/accepted.json`, the oldest first."""

    acceptances: tuple[Acceptance, ...] = ()


@dataclass
class Accepted:
    """What counts as what."""

    codes: dict[tuple[str, frozenset[tuple[str, str]], str], str] = field(default_factory=dict)
    """The older hash by rule, keys of the job, and the present hash."""
    keys: dict[str, str] = field(default_factory=dict)
    """Older keys of shards of activations by the present ones."""

    def add(self, acceptance: Acceptance) -> None:
        """Take in an acceptance; it outweighs earlier ones of the same jobs."""
        for found in acceptance.codes:
            for job in found.jobs:
                self.add_code(found.rule, job_keys(job), found.present, found.accepted)
        self.keys |= acceptance.activations

    def add_code(self, rule: str, keys: Mapping[str, Any], present: str, accepted: str) -> None:
        """Have a job's present code count as an older one."""
        self.codes[rule, _key(keys), present] = accepted

    def code(self, rule: str, keys: Mapping[str, Any], present: str) -> str:
        """The hash that a job's code counts by, whose present hash is given."""
        if not self.codes:
            return present
        return self.codes.get((rule, _key(keys), present), present)

    def key(self, present: str) -> str:
        """The key that shards of activations count by, whose present key is given."""
        return self.keys.get(present, present)


_in_use = Accepted()


def in_use() -> Accepted:
    """What was accepted in the results at work; nothing unless `honour` said so."""
    return _in_use


def honour(accepted: Accepted) -> None:
    """Have the builders of params honour what was accepted."""
    global _in_use
    _in_use = accepted


def read_acceptances(root: Path) -> tuple[Acceptance, ...]:
    """The acceptances below `root`, the oldest first.

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
            f"{file}: not readable ({error}); restore it, or remove it to run again what was "
            "accepted"
        ) from None
    return parse_section(AcceptedFile, found, where=str(file)).acceptances


def read_accepted(root: Path) -> Accepted:
    """What was accepted below `root`."""
    found = Accepted()
    for acceptance in read_acceptances(root):
        found.add(acceptance)
    return found


def append_acceptance(root: Path, acceptance: Acceptance) -> None:
    """Record an acceptance below `root`."""
    found = AcceptedFile(acceptances=(*read_acceptances(root), acceptance))
    write_json(root / paths.ACCEPTED, found.model_dump(mode="json"))


def job_name(keys: Mapping[str, Any]) -> str:
    """The keys of a job as one text; those that are None without a value."""
    return "/".join(f"{n}={'' if v is None else v}" for n, v in keys.items()) or ALL


def job_keys(name: str) -> dict[str, Any]:
    """The keys of a job by its `job_name`."""
    pairs = (part.partition("=") for part in name.split("/") if name != ALL)
    return {key: value or None for key, _, value in pairs}


def _key(keys: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((name, str(value)) for name, value in keys.items() if value is not None)


def accepted_jobs(acceptances: Iterable[Acceptance]) -> Iterator[tuple[str, str, str, str]]:
    """Rule, keys, present and older hash of each accepted job; the last word on each counts."""
    last: dict[tuple[str, str, str], str] = {}
    for acceptance in acceptances:
        for found in acceptance.codes:
            last |= {(found.rule, job, found.present): found.accepted for job in found.jobs}
    for (rule, job, present), accepted in last.items():
        yield rule, job, present, accepted
