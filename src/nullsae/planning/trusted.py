"""Find the config keys that must be trusted, because they run code or send secrets."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from nullsae.config.section import Section, Trusted
from nullsae.core.visible import visible

PLUG_INS = "nullsae."


@dataclass(frozen=True)
class TrustedKey:
    """A value that nullsae cannot check."""

    key: str
    """Config key, such as `explainers.mine.server.command`."""
    value: str
    """Quoted for a shell, on one line, with nothing hidden."""
    does: str
    """What it makes jobs do."""


def trusted_keys(section: Section, key: str = "") -> list[TrustedKey]:
    """Return the keys of a section, and of nested ones, that are marked `Trusted` and set."""
    found = []
    for name, field in type(section).model_fields.items():
        value, here = getattr(section, name), f"{key}.{name}" if key else name
        marks = [mark for mark in field.metadata if isinstance(mark, Trusted)]
        if marks and value:
            found.append(TrustedKey(here, _quoted(value), marks[0].does))
        for inner, part in _sections(value, here):
            found += trusted_keys(part, inner)
    return found


def plug_ins() -> list[str]:
    """Return what installed packages add to nullsae, one line each; it runs with each command."""
    groups = [group for group in entry_points().groups if group.startswith(PLUG_INS)]
    found = [point for group in groups for point in entry_points(group=group)]
    return sorted({visible(f"{p.group} {p.name}: {p.value}".replace("\n", " ")) for p in found})


def _sections(value: Any, key: str) -> Iterator[tuple[str, Section]]:
    """Yield the sections that a value is or contains, with their keys."""
    if isinstance(value, Section):
        yield key, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _sections(part, f"{key}.{name}")
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _sections(part, f"{key}[{i}]")


def _quoted(value: Any) -> str:
    if isinstance(value, tuple | list):
        text = shlex.join(map(str, value))
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, dict):
        text = shlex.join(f"{name}: {part}" for name, part in value.items())
    else:
        text = shlex.quote(str(value))
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")
