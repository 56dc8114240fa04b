"""The rules of the workflow: the params of their jobs, and the code that these run.

Each module of this folder declares the rules of one file of `workflow/rules`, each by a builder
with the rule's name; this module finds them.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.jobs.accepted import in_use
from nullsae.jobs.code_hash import code_hash, files_in
from nullsae.jobs.code_record import note_code

Wildcards = Mapping[str, str]
P = TypeVar("P", bound=Section)

# Code that computes no result: wiring, checks of inputs, formats for other tools.
NO_RULES = (
    *("__init__.py", "__main__.py", "api", "cli", "config", "core", "fetching"),
    *("jobs", "paths.py", "planning", "py.typed", "tables", "watching"),
)


@dataclass(eq=False)
class Rule(Generic[P]):
    """A rule; called with a config and wildcards, it returns the params of one job. See `rule`."""

    build: Callable[[Config, Wildcards], P]
    owned: tuple[str, ...]
    but: tuple[str, ...]
    things: Callable[[Config, Wildcards], Iterable[Path]]
    ordered: bool

    def __post_init__(self) -> None:
        self.name, self.__doc__ = self.build.__name__, self.build.__doc__

    def __call__(self, config: Config, wildcards: Wildcards) -> P:
        """Return the params of one job."""
        return self.build(config, wildcards)

    @cached_property
    def params(self) -> type[P]:
        """Type of the rule's `--params`."""
        found: type[P] = get_type_hints(self.build)["return"]
        return found

    @cached_property
    def files(self) -> list[Path]:
        """The files that decide what all jobs of the rule compute, sorted."""
        return files_in(self.owned, self.but)

    def code(self, *things: Path) -> str:
        """Return the hash of a job's code, with the files of things that only this job uses."""
        files = (*self.files, *things)
        found = code_hash(*files)
        note_code(self.name, found, files)
        return found

    def present_code(self, config: Config, wildcards: Wildcards) -> str:
        """Return the hash of the code that one job would run now."""
        return self.code(*self.things(config, wildcards))


def rule(
    *code: str,
    but: tuple[str, ...] = (),
    things: Callable[[Config, Wildcards], Iterable[Path]] = lambda _config, _wildcards: (),
    ordered: bool = True,
) -> Callable[[Callable[[Config, Wildcards], P]], Rule[P]]:
    """Declare the rule with the name of a builder of params.

    Snakemake runs a job again when its params or the hash of its code change. The verb gets only
    the params, so that it cannot depend on anything else in the config.

    Args:
        code: files and folders of the package that decide what the rule computes. Code that makes
            its inputs (tokens, weights, shards) is covered by the hashes of other rules.
        but: files and folders in these that compute nothing for it.
        things: files that only some of its jobs run, such as that of a metric or a variant.
        ordered: whether the params' keys are sorted; else the order of the config counts.
    """
    return lambda build: Rule(build, code, but, things, ordered)


@cache
def rules() -> dict[str, Rule[Any]]:
    """Return all rules by name, those of a module in source order."""
    folder = import_module(__package__)
    modules = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))
    things = [t for n in modules for t in vars(import_module(f"{__package__}.{n}")).values()]
    return {found.name: found for found in things if isinstance(found, Rule)}


def rule_params(config: Config, rule: str, wildcards: Wildcards) -> str:
    """Return the slice of the config that one job uses, as JSON on one line."""
    found = rules()[rule]
    return as_json(found(config, wildcards), ordered=found.ordered)


def job_code(config: Config, rule: str, wildcards: Wildcards) -> str:
    """Return the hash that one job's code counts as: an older one if that was accepted."""
    return in_use().code(rule, wildcards, rules()[rule].present_code(config, wildcards))


@dataclass(frozen=True)
class Codes:
    """The hashes of rules' code in a key: those of the current code, except those given."""

    given: tuple[tuple[str, str], ...] = ()
    """Rules and hashes."""

    def of(self, rule: Rule[Any], *things: Path) -> str:
        """Return the hash of a job's code, with the files of things that only this job uses."""
        return dict(self.given).get(rule.name) or rule.code(*things)


PRESENT = Codes()


def as_json(section: Section, *, ordered: bool = True) -> str:
    """Return a section as JSON on one line, its keys sorted or in the order of the config."""
    return json.dumps(section.model_dump(mode="json"), sort_keys=ordered, separators=(",", ":"))


def only(config: Config, keys: Iterable[str]) -> Config:
    """Return the config with only these keys: reading another is an AttributeError."""
    part = config.model_copy()
    for name in Config.model_fields.keys() - set(keys):
        del vars(part)[name]
    return part
