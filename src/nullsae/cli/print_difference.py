"""`nullsae diff`: print what differs between two studies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nullsae import paths, tables
from nullsae.config.plain import read_yaml
from nullsae.config.read import way_to_run
from nullsae.core.errors import UserError
from nullsae.core.visible import visible
from nullsae.tables.study import PROVENANCE, STAGE_KEYS

Row = Mapping[str, Any]
Key = tuple[Any, ...]
# The columns that identify a comparison, and the columns of `provenance` to compare.
KEYS = tuple(name for column in STAGE_KEYS for name in column[0].split())
MAKERS = (
    *("nullsae", "commit", "python", "torch", "transformers", "cuda"),
    *("device", "device_kind", "host", "dtype", "threads", "revisions"),
)
ABSENT = "absent"
# Values of a key that a line names before it only counts the rest.
MOST_NAMED = 3


def print_difference(a: Path, b: Path) -> bool:
    """Print what differs between the studies in two folders: config, provenance, verdicts.

    Returns:
        Whether the two have a comparison in common, so that verdicts could be compared.

    Raises:
        UserError: a study never ran, is not finished, or is damaged.
    """
    console = Console() if Console().is_terminal else Console(width=160)
    heads = [escape(visible(str(study))) for study in (a, b)]
    for title, found in (
        ("Config", changed_keys(*(_run_config(study) for study in (a, b)))),
        ("Provenance", changed_makers(*(_provenance(study) for study in (a, b)))),
    ):
        _print(console, Table(title, *heads), found)
    verdicts = [_verdicts(study) for study in (a, b)]
    both = verdicts[0].keys() & verdicts[1].keys()
    if not both:
        why = "; ".join(why_none_is_common([str(study) for study in (a, b)], verdicts))
        console.print(
            f"Verdicts: nothing to compare, as no comparison is in both. {why}.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return False
    changed = {key: (x, y) for key, x, y in _pairs(*verdicts) if x["verdict"] != y["verdict"]}
    shown = {_named(key): (_said(x), _said(y)) for key, (x, y) in changed.items()}
    _print(console, Table("Verdicts", *heads), shown)
    apart = [key for key, x, y in _pairs(*verdicts) if are_apart(x, y)]
    console.print(
        f"{len(both) - len(changed):,} of {len(both):,} comparisons of both have the same verdict; "
        f"the intervals of {len(apart):,} do not overlap.",
        highlight=False,
    )
    for study, own in zip((a, b), verdicts, strict=True):
        if alone := [_named(key) for key in own if key not in both]:
            console.print(
                f"Only in {study}: {_count(alone)}, such as {alone[0]}.",
                markup=False,
                highlight=False,
            )
    return True


def why_none_is_common(studies: Sequence[str], verdicts: Sequence[Mapping[Key, Row]]) -> list[str]:
    """Explain why two studies have no comparison in common, a phrase for each key.

    Args:
        studies: their names.
        verdicts: verdicts of each study, by the values of `KEYS`; no key is in both.
    """
    if empty := [study for study, own in zip(studies, verdicts, strict=True) if not own]:
        return [f"{study} has none" for study in empty]
    found: dict[str, str] = {}
    for i, key in enumerate(KEYS):
        values = [dict.fromkeys(each[i] for each in own) for own in verdicts]
        if values[0].keys().isdisjoint(values[1]):
            named = [f"{_some(own)} in {study}" for own, study in zip(values, studies, strict=True)]
            # A model's null and variant are the same: say it once.
            found.setdefault(" and ".join(named), key)
    otherwise = f"No single key ({', '.join(KEYS)}) differs throughout, but their combinations do"
    return [f"{key}: {said}" for said, key in found.items()] or [otherwise]


def _some(values: Collection[Any]) -> str:
    """Return the first few values as text."""
    shown = [str(value) for value in values][:MOST_NAMED]
    more = [f"{len(values) - len(shown)} more"] if len(values) > len(shown) else []
    return ", ".join([*shown, *more])


def changed_keys(a: Any, b: Any) -> dict[str, tuple[str, str]]:
    """Return the dotted keys whose values differ between two configs, with both values."""
    flat = [dict(_flat(config)) for config in (a, b)]
    return {
        key: (flat[0].get(key, ABSENT), flat[1].get(key, ABSENT))
        for key in dict.fromkeys((*flat[0], *flat[1]))
        if flat[0].get(key, ABSENT) != flat[1].get(key, ABSENT)
    }


def changed_makers(a: list[Row], b: list[Row]) -> dict[str, tuple[str, str]]:
    """Return the columns that differ between two `provenance` tables, with all their values."""
    found = {}
    for name in MAKERS:
        values = [
            sorted({str(row[name]) for row in rows if row[name] is not None}) for rows in (a, b)
        ]
        if values[0] != values[1]:
            found[name] = (", ".join(values[0]) or ABSENT, ", ".join(values[1]) or ABSENT)
    return found


def are_apart(x: Row, y: Row) -> bool:
    """Return whether the intervals of two rows of `verdicts` do not overlap."""
    ends = [row[f"difference_{end}"] for row in (x, y) for end in ("low", "high")]
    return None not in ends and (ends[1] < ends[2] or ends[3] < ends[0])


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of a config with their dotted keys."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)


def _pairs(a: dict[Key, Row], b: dict[Key, Row]) -> Iterator[tuple[Key, Row, Row]]:
    return ((key, row, b[key]) for key, row in a.items() if key in b)


def _run_config(study: Path) -> Any:
    file = study / paths.RUN_CONFIG
    if not file.is_file():
        raise UserError(f"{file}: does not exist; {way_to_run(study, 'writes it')}")
    return read_yaml(file)


def _provenance(study: Path) -> list[Row]:
    rows: list[Row] = tables.read_table(study / paths.PROVENANCE, PROVENANCE).to_pylist()
    return rows


def _verdicts(study: Path) -> dict[Key, Row]:
    rows = tables.read_whole(study, "verdicts").to_pylist()
    return {tuple(row[name] for name in KEYS): row for row in rows}


def _named(key: Key) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(key) if value is not None)


def _said(row: Row) -> str:
    number = "" if row["difference"] is None else f" {row['difference']:+.3g}"
    return f"{row['verdict']}{number}"


def _count(names: list[str]) -> str:
    return "1 comparison" if len(names) == 1 else f"{len(names):,} comparisons"


def _print(console: Console, table: Table, found: Mapping[str, tuple[str, str]]) -> None:
    if not found:
        console.print(f"{table.columns[0].header}: the same.", highlight=False)
        return
    for name, values in found.items():
        table.add_row(*(escape(visible(text)) for text in (name, *values)))
    console.print(table)
