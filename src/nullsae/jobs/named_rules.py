"""Rules as users name them in Snakemake's options.

What the docs call `train_sae` may be several Snakemake rules, one for each job that trains SAEs
together (`jobs.shared_training`), and rules of `jobs.of_models` may have a number appended. Options
with the plain name apply to all of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Snakemake settings with names of rules, or files.
NAMING = ("forcerun", "until", "omit_from")


def mean_all(workflow: Any, made: Mapping[str, Sequence[str]]) -> None:
    """Apply `--forcerun`, `--until`, `--omit-from` and `--groups` of a rule to all made from it.

    Snakemake sets these settings, as attributes, after it has read the rules.

    Args:
        workflow: Snakemake's workflow object.
        made: by rule, the names of the rules made from it.
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
    """Return names of rules and files, with each rule replaced by those made from it."""
    return frozenset(name for each in given for name in made.get(each, (each,)))


def forced(arguments: Sequence[str]) -> set[str] | None:
    """Return the names after `--forcerun` on Snakemake's command line; None for `--forceall`.

    Rules are read before Snakemake has these settings.
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
