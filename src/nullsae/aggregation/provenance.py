"""Who made the cells of a study, and which arms were not made alike.

This does not depend on the config alone: two machines with identical tables have different rows
here. So none of it is in `results/tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.study import Config
from nullsae.core import provenance
from nullsae.jobs.grid import (
    Keys,
    explainer_cells,
    floor_cells,
    model_cells,
    recipe_cells,
    sae_cells,
    scorer_cells,
)
from nullsae.tables.study import PROVENANCE

Row = dict[str, Any]

UNKNOWN = "unknown"
SPLITS = ("sae_train", "eval")
# What arms are compared by, and its name in a sentence.
COMPARED = {
    **{name: name for name in ("nullsae", "commit", "torch", "transformers")},
    **{"python": "Python", "cuda": "CUDA", "device_kind": "device", "dtype": "dtype"},
    "precision": "precision",
}
# Columns that identify an arm, besides the variant.
ARM = ("kind", "subject", "split", "site", "sae", "explainer", "scorer")
# Places that a sentence names before it counts the rest.
NAMED = 3

_names = PROVENANCE.names
KEYS = tuple(_names[1 : _names.index("job")])
OF_JOB = tuple(_names[_names.index("verb") : _names.index("revisions")])


def artifacts(config: Config) -> Iterator[tuple[str, Keys, str]]:
    """Yield kind, keys and folder of every part of a study, in the order they are made."""
    for corpus in dict.fromkeys(subject.corpus for subject in config.subjects.values()):
        yield "corpus", {"corpus": corpus}, paths.CORPUS.format(corpus=corpus)
    for keys in model_cells(config):
        yield "model", keys, paths.MODEL.format(**keys)
    saes = [*chain(sae_cells(config), floor_cells(config))]
    at = ("subject", "variant", "draw", "site")
    for values in dict.fromkeys(tuple(keys[name] for name in at) for keys in saes):
        for split in SPLITS:
            keys = {**dict(zip(at, values, strict=True)), "split": split}
            yield "activations", keys, paths.SITE.format(**keys)
    for scorer in config.scorers:
        yield "judge", {"scorer": scorer}, paths.JUDGE.format(scorer=scorer)
    cells = {
        "sae": (paths.SAE, saes),
        "metrics": (paths.METRICS, saes),
        "overlap": (str(Path(paths.OVERLAP).parent), recipe_cells(config)),
        "latents": (paths.LATENT_FOLDER, sae_cells(config)),
        "explanations": (str(Path(paths.EXPLANATIONS).parent), explainer_cells(config)),
        "scores": (str(Path(paths.SCORES).parent), scorer_cells(config)),
    }
    for kind, (pattern, found) in cells.items():
        for keys in found:
            yield kind, keys, pattern.format(**keys)


def read_provenance(config: Config, root: Path) -> list[Row]:
    """Return rows of `provenance` for the parts that exist, in the order of `artifacts`."""
    rows: list[Row] = []
    for kind, keys, folder in artifacts(config):
        if not (root / folder).is_dir():
            continue  # such as activations that were not kept
        key_columns: Row = {name: keys.get(name) for name in KEYS}
        for name in ("draw", "seed"):
            key_columns[name] = None if name not in keys else int(keys[name])
        start = {"kind": kind, **key_columns}
        rows += [start | row for row in _jobs(root / folder / provenance.FILE)]
    for row, found in zip(rows, _differing(rows), strict=True):
        row["differs_from_trained"] = found
    return rows


def _jobs(file: Path) -> Iterator[Row]:
    """Yield the columns from a `provenance.json`, one row per job."""
    made = provenance.read(file)
    if made is None or not made.jobs:
        yield {"job": 0, "revisions": None, "tokens_seen": None} | {
            name: None if name in ("threads", "precision") else UNKNOWN for name in OF_JOB
        }
        return
    revisions = ", ".join(f"{what}@{commit}" for what, commit in sorted(made.revisions.items()))
    for number, job in enumerate(made.jobs):
        own = {name: getattr(job, name) for name in OF_JOB}
        yield own | {
            "job": number,
            "revisions": revisions or None,
            "tokens_seen": made.tokens_seen,
        }


def _differing(rows: list[Row]) -> list[str | None]:
    """Return, for each row, how the cells of its arm differ from those of the trained one.

    Properties that an arm's jobs did not use, or that are unknown, do not count.
    """
    arms: dict[tuple[Any, ...], dict[str, set[str]]] = {}
    for row in rows:
        values = arms.setdefault((*_arm(row), row["variant"]), {name: set() for name in COMPARED})
        for name in COMPARED:
            if row[name] not in (None, UNKNOWN):
                values[name].add(str(row[name]))
    found: list[str | None] = []
    for row in rows:
        own = arms[*_arm(row), row["variant"]]
        trained = arms.get((*_arm(row), "trained"), own)
        told = [
            f"{word} {' and '.join(sorted(own[name]))} "
            f"(trained: {' and '.join(sorted(trained[name]))})"
            for name, word in COMPARED.items()
            if own[name] and trained[name] and own[name] != trained[name]
        ]
        found.append(", ".join(told) or None)
    return found


def _arm(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ARM)


def differences(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Return (subject, sentence) for contrasts whose arms were not made alike.

    Such a contrast may reflect a version or a device; `rows` are those of `provenance`.
    """
    places: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        if (text := row["differs_from_trained"]) is not None:
            where = [row[name] for name in ("split", "site", "sae", "explainer", "scorer")]
            place = " ".join([row["kind"], *(str(key) for key in where if key is not None)])
            places.setdefault((row["subject"], row["variant"], text), {})[place] = None
    told = []
    for (subject, variant, text), found in places.items():
        first, rest = [*found][:NAMED], len(found) - NAMED
        named = "; ".join(first) + (f"; and {rest} more" if rest > 0 else "")
        told.append((subject, f"{variant} and trained were not made alike: {text}, in {named}"))
    return told


def in_short(rows: list[Row]) -> tuple[str, list[Row]]:
    """Summarize what made a study in one line, and what differs within a kind of artifacts.

    Rows of the latter have `kind`, `what`, `value`, `n` (artifacts) and `variants`.
    """
    words = {**COMPARED, "device": "device", "threads": "threads"}
    del words["device_kind"]

    def values(name: str, of: Iterable[Row] = rows) -> list[str]:
        return [str(v) for v in dict.fromkeys(row[name] for row in of) if v is not None]

    line = ", ".join(f"{words[n]} {' and '.join(values(n))}" for n in words if values(n))
    differing: list[Row] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        for name, word in words.items():
            found = values(name, of_kind)
            for value in found if len(found) > 1 else ():
                own = [row for row in of_kind if str(row[name]) == value]
                differing.append(
                    {
                        **{"kind": kind, "what": word, "value": value},
                        "n": len({tuple(row[key] for key in KEYS) for row in own}),
                        "variants": [*dict.fromkeys(r["variant"] for r in own if r["variant"])],
                    }
                )
    return line, differing
