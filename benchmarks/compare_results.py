"""Check whether two runs gave the same results: `python benchmarks/compare_results.py OLD NEW`.

OLD and NEW are folders that contain `results/`, or such folders themselves. Every file below both
is compared byte by byte. If a Parquet file differs, its columns and the first rows that differ are
named; for safetensors files the tensors, for JSON files the keys. Tables in `results/tables` are
listed one by one, the rest in a summary of each folder.

Logs, `results/benchmarks`, `results/work` and each `provenance.json` are left out, and so are
columns that come from a clock. `--columns a,b` names further columns that may differ. Exits with 1
if a table differs.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from nullsae.tables import MEASURED

LEFT_OUT = ("benchmarks", "logs", "work")
PROVENANCE = "provenance.json"
# Rows of a table, and files of a folder, that are named before the rest is only counted.
NAMED = 3


def results_folder(folder: Path) -> Path:
    """Return `folder`, or the `results` below it; exit if there is no such folder."""
    inner = folder / "results"
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder")
    return inner if inner.is_dir() else folder


def files(results: Path) -> set[str]:
    """List paths below a results folder, without those that differ between any two runs."""
    found = (path.relative_to(results) for path in results.rglob("*") if path.is_file())
    return {str(p) for p in found if p.parts[0] not in LEFT_OUT and p.name != PROVENANCE}


def column_difference(old: pa.ChunkedArray, new: pa.ChunkedArray) -> str | None:
    """Return how many rows of two columns differ, by how much at most, and the first; or None."""
    if old.type != new.type:
        return f"type {old.type}, now {new.type}"
    before, after = old.to_pylist(), new.to_pylist()
    pairs = enumerate(zip(before, after, strict=True))
    # As text, NaN equals NaN.
    rows = [row for row, (one, two) in pairs if repr(one) != repr(two)]
    if not rows:
        return None
    numbers = [
        abs(before[row] - after[row])
        for row in rows
        if isinstance(before[row], float) and isinstance(after[row], float)
    ]
    largest = f", by at most {np.nanmax(numbers):.3g}" if numbers else ""
    shown = "; ".join(f"row {row}: {before[row]!r}, now {after[row]!r}" for row in rows[:NAMED])
    return f"{len(rows)} of {len(before)} rows differ{largest} ({shown})"


def parquet_difference(old: Path, new: Path, allowed: set[str]) -> list[str]:
    """List what differs between two Parquet files, apart from columns in `allowed`."""
    before, after = (pq.read_table(path, partitioning=None) for path in (old, new))
    may_differ = allowed | set(MEASURED.get(old.stem, ()))
    lines = [
        f"column {name}: only in the {which} file"
        for which, one, other in (("old", before, after), ("new", after, before))
        for name in one.column_names
        if name not in other.column_names and name not in may_differ
    ]
    if before.num_rows != after.num_rows:
        return [*lines, f"{before.num_rows} rows, now {after.num_rows}"]
    excused = False
    for name in before.column_names:
        if name not in after.column_names:
            excused = True
            continue
        difference = column_difference(before[name], after[name])
        excused |= difference is not None and name in may_differ
        if difference and name not in may_differ:
            lines.append(f"column {name}: {difference}")
    excused |= not set(after.column_names) <= set(before.column_names)
    common = [name for name in before.column_names if name in after.column_names]
    if common != [name for name in after.column_names if name in common]:
        lines.append("the order of the columns differs")
    return lines or ([] if excused else ["same columns and rows, other bytes"])


def tensor_difference(old: Path, new: Path, _: set[str]) -> list[str]:
    """Name the tensors of two safetensors files that differ, and by how much."""
    before, after = load_file(old), load_file(new)
    lines = [f"tensor {name}: only in one file" for name in sorted(before.keys() ^ after.keys())]
    for name in sorted(before.keys() & after.keys()):
        one, two = before[name], after[name]
        if (one.shape, one.dtype) != (two.shape, two.dtype):
            was, now = (f"{each.dtype} {tuple(each.shape)}" for each in (one, two))
            lines.append(f"tensor {name}: {was}, now {now}")
        else:
            # Bytes, because NaN is equal to NaN here, and 0 not to -0.
            size = one.element_size()
            raw = (each.flatten().view(torch.uint8).view(-1, size) for each in (one, two))
            count = int(torch.ne(*raw).any(1).sum())
            if count:
                by = np.nanmax((one.double() - two.double()).abs().numpy())
                lines.append(
                    f"tensor {name}: {count} of {one.numel()} numbers differ, by at most {by:.3g}"
                )
    return lines or ["same tensors, other bytes"]


def json_difference(old: Path, new: Path, _: set[str]) -> list[str]:
    """List paths of the keys of two JSON files whose values differ."""

    def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from leaves(inner, f"{path}.{key}" if path else key)
        else:
            yield path, value

    before, after = (dict(leaves(json.loads(path.read_text("utf-8")))) for path in (old, new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"key {key}" for key in keys] or ["same values, other bytes"]


READERS: dict[str, Callable[[Path, Path, set[str]], list[str]]] = {
    ".parquet": parquet_difference,
    ".safetensors": tensor_difference,
    ".json": json_difference,
}


def difference(old: Path, new: Path, allowed: set[str]) -> list[str]:
    """List what differs between two files, a line each; nothing if they count as the same."""
    if filecmp.cmp(old, new, shallow=False):
        return []
    reader = READERS.get(old.suffix)
    try:
        return reader(old, new, allowed) if reader else ["other bytes"]
    except Exception as error:  # A file that cannot be read differs: the reason is the finding.
        return [f"other bytes, and unreadable ({type(error).__name__}: {error})"]


def compare(old: Path, new: Path, allowed: set[str]) -> bool:
    """Print how two results folders differ; return whether all files of `tables/` are the same."""
    before, after = files(old), files(new)
    differences = {
        name: ["only in the old results"]
        if name not in after
        else ["only in the new results"]
        if name not in before
        else difference(old / name, new / name, allowed)
        for name in sorted(before | after)
    }
    tables = [name for name in differences if Path(name).parts[0] == "tables"]
    wrong = [name for name in tables if differences[name]]
    print(f"tables: {len(tables) - len(wrong)} of {len(tables)} are the same")
    for name in wrong:
        print(f"  {name}", *(f"    {line}" for line in differences[name]), sep="\n")
    folders = dict.fromkeys(Path(name).parts[0] for name in differences if name not in tables)
    for folder in folders:
        names = [name for name in differences if Path(name).parts[0] == folder]
        others = [name for name in names if differences[name]]
        print(f"{folder}: {len(names) - len(others)} of {len(names)} are the same")
        for name in others[:NAMED]:
            print(f"  {name}", *(f"    {line}" for line in differences[name]), sep="\n")
        if len(others) > NAMED:
            kinds = sorted({line for name in others[NAMED:] for line in _kinds(differences[name])})
            print(f"  and {len(others) - NAMED} more: {', '.join(kinds)}")
    return bool(tables) and not wrong


def _kinds(lines: list[str]) -> set[str]:
    """Drop the numbers of a difference's lines, so that they can be counted together."""
    return {line.partition(":")[0] for line in lines}


def main() -> None:
    """Read the arguments, compare, and exit with 1 if a table differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--columns", default="", help="columns that may differ, separated by commas"
    )
    options = parser.parse_args()
    allowed = set(filter(None, options.columns.split(",")))
    same = compare(results_folder(options.old), results_folder(options.new), allowed)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
