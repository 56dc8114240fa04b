"""Which contrasts depend on files of older code for which the current code was accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from nullsae.config.study import Config
from nullsae.config.variants import floor_name
from nullsae.core.errors import UserError
from nullsae.jobs.accepted import accepted_jobs, job_keys, read_acceptances
from nullsae.jobs.rules import rules

KEYS = ("corpus", "subject", "variant", "site", "sae", "explainer", "scorer")
"""The job keys that identify dependent contrasts: every draw, seed and split counts."""
# Rules that concern explanations only.
JUDGING = ("explain_", "score_")
# Rules that no contrast depends on, or that run again with the tables.
APART = ("aggregate", "report", "train_toy", "report_toy")


def accepted_notes(config: Config, root: Path) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a function of rows of `contrasts`: which acceptances their files depend on.

    Acceptances count only while in force: once code changes again, its files are made again.

    Raises:
        UserError: the file of acceptances is damaged.
    """
    # By the names of the keys and the text: the values of those keys.
    in_force: dict[tuple[tuple[str, ...], str], set[tuple[str, ...]]] = {}
    for rule, job, present, accepted in accepted_jobs(read_acceptances(root)):
        keys = job_keys(job)
        if rule not in APART and _present(config, rule, keys) == present:
            names = tuple(name for name in KEYS if name in keys)
            told = in_force.setdefault((names, f"{rule} accepted from {accepted}"), set())
            told.add(tuple(keys[name] for name in names))

    def note(row: Mapping[str, Any]) -> str | None:
        variants = (row["variant"], "trained")
        own = {name: (row.get(name),) for name in KEYS} | {
            "corpus": (config.subjects[row["subject"]].corpus,),
            "variant": (*variants, *map(floor_name, variants)),
        }
        # At these stages the null is another cell with the same keys otherwise.
        if (key := {"dictionary": "sae", "explanation": "explainer"}.get(row["stage"])) is not None:
            own[key] += (row["null"],)
        found = [
            text
            for (names, text), jobs in in_force.items()
            if (row["explainer"] or not text.startswith(JUDGING))
            and not jobs.isdisjoint(product(*(own[name] for name in names)))
        ]
        return "; ".join(found) or None

    return note


def _present(config: Config, rule: str, keys: Mapping[str, Any]) -> str | None:
    """Return the hash of a job's current code; None if the config no longer contains the job."""
    try:
        return rules()[rule].present_code(config, keys)
    except (KeyError, UserError):
        return None
