"""Rules as users name them, in Snakemake's options.

What the docs call `train_sae` may be several rules of Snakemake's, one for each job that trains
SAEs together (`jobs.shared_training`), and rules of `jobs.of_models` differ in a number. Options
that name the one mean all of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Settings of Snakemake's that hold names of rules, or files.
NAMING = ("forcerun", "until", "omit_from")


def mean_all(workflow: Any, made: Mapping[str, Sequence[str]]) -> None:
    """Let `--forcerun`, `--until`, `--omit-from` and `--groups` of a rule hold for all made of it.

    Snakemake hands these settings over after it has read the rules, as attributes.

    Args:
        workflow: Snakemake's own.
        made: by rule, the names of those that are made of it.
    """

    class Named(type(workflow)):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "dag_settings" and value is not None:
                for option in NAMING:
                    setattr(value, option, all_of(getattr(value, option), made))
            if name == "group_settings" and value is not None:
                groups = dict(value.overwrite_groups)
                for rule in made.keys() & groups.keys():
                    groups = dict.fromkeys(made[rule], groups[rule]) | groups
                value.overwrite_groups = groups
            super().__setattr__(name, value)

    workflow.__class__ = Named


def all_of(given: Iterable[str], made: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Names of rules, and files, with each rule replaced by those that are made of it."""
    return frozenset(name for each in given for name in made.get(each, (each,)))


def forced(arguments: Sequence[str]) -> set[str] | None:
    """What a command line of Snakemake's names after `--forcerun`; None for `--forceall`.

    Rules are read before Snakemake says so itself.
    """
    found: set[str] = set()
    taking = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--forceall", "-F"):
            return None
        if argument.startswith("-"):
            taking = name in ("--forcerun", "-R")
            found |= {value} if taking and equals else set()
        elif taking:
            found.add(argument)
    return found
