"""The rules of the workflow: what a job of each is given, and whose code it runs.

A module of this folder declares the rules of one file of `workflow/rules`, each by a builder of the
rule's name; here they are found.
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

# What computes no result: wiring, checks of input, formats that are written for others.
NO_RULES = (
    *("__init__.py", "__main__.py", "api", "cli", "config", "core", "fetching"),
    *("jobs", "paths.py", "planning", "py.typed", "tables", "watching"),
)


@dataclass(eq=False)
class Rule(Generic[P]):
    """A rule; called with a config and wildcards, it gives the params of one job. See `rule`."""

    build: Callable[[Config, Wildcards], P]
    owned: tuple[str, ...]
    but: tuple[str, ...]
    things: Callable[[Config, Wildcards], Iterable[Path]]
    ordered: bool

    def __post_init__(self) -> None:
        self.name, self.__doc__ = self.build.__name__, self.build.__doc__

    def __call__(self, config: Config, wildcards: Wildcards) -> P:
        """The params of one job."""
        return self.build(config, wildcards)

    @cached_property
    def params(self) -> type[P]:
        """What the rule's verb takes as `--params`."""
        found: type[P] = get_type_hints(self.build)["return"]
        return found

    @cached_property
    def files(self) -> list[Path]:
        """The files that decide what all jobs of the rule compute, sorted."""
        return files_in(self.owned, self.but)

    def code(self, *things: Path) -> str:
        """Hash of the code that a job runs, with the files of the things that it alone uses."""
        files = (*self.files, *things)
        found = code_hash(*files)
        note_code(self.name, found, files)
        return found

    def present_code(self, config: Config, wildcards: Wildcards) -> str:
        """Hash of the code that one job would run now."""
        return self.code(*self.things(config, wildcards))


def rule(
    *code: str,
    but: tuple[str, ...] = (),
    things: Callable[[Config, Wildcards], Iterable[Path]] = lambda _config, _wildcards: (),
    ordered: bool = True,
) -> Callable[[Callable[[Config, Wildcards], P]], Rule[P]]:
    """Declare the rule that a builder of params is named as.

    Snakemake runs a job again when its params or the hash of its code change. The verb is given the
    params alone, so that it cannot depend on anything that is not in them.

    Args:
        code: files and folders of the package that decide what the rule computes. What another rule
            made for it (tokens, weights, shards) changes through that rule's own hash.
        but: those of these folders that compute nothing for it.
        things: files that only some of its jobs run, such as that of a metric or a variant.
        ordered: whether the params' keys are sorted; else the order of the config counts.
    """
    return lambda build: Rule(build, code, but, things, ordered)


@cache
def rules() -> dict[str, Rule[Any]]:
    """All rules by name, those of a module in the order in which they stand there."""
    folder = import_module(__package__)
    modules = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))
    things = [t for n in modules for t in vars(import_module(f"{__package__}.{n}")).values()]
    return {found.name: found for found in things if isinstance(found, Rule)}


def rule_params(config: Config, rule: str, wildcards: Wildcards) -> str:
    """The slice of the config that one job uses, as JSON in one line."""
    found = rules()[rule]
    return as_json(found(config, wildcards), ordered=found.ordered)


def job_code(config: Config, rule: str, wildcards: Wildcards) -> str:
    """Hash of the code that one job counts by: an older one's, where that was accepted."""
    return in_use().code(rule, wildcards, rules()[rule].present_code(config, wildcards))


@dataclass(frozen=True)
class Codes:
    """The hashes that rules' code has in a key: of the present code, but for those given."""

    given: tuple[tuple[str, str], ...] = ()
    """Rules and hashes."""

    def of(self, rule: Rule[Any], *things: Path) -> str:
        """The hash of a job's code, with the files of the things that it alone uses."""
        return dict(self.given).get(rule.name) or rule.code(*things)


PRESENT = Codes()


def as_json(section: Section, *, ordered: bool = True) -> str:
    """A section as JSON in one line, its keys sorted or in the order of the config."""
    return json.dumps(section.model_dump(mode="json"), sort_keys=ordered, separators=(",", ":"))


def only(config: Config, keys: Iterable[str]) -> Config:
    """The config with no other keys than these: to read another is an AttributeError."""
    part = config.model_copy()
    for name in Config.model_fields.keys() - set(keys):
        del vars(part)[name]
    return part
