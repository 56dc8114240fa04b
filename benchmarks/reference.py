"""Make docs/reference/NAME: `python benchmarks/reference.py STUDY NAME`.

STUDY is the folder of a finished study. With `--check`, nothing is written: the script prints where
the study disagrees with docs/reference/NAME, and exits with 1 if it does.

A study agrees with its reference if it makes the same comparisons; if no verdict differs, except
that a sixth may have become inconclusive, or stopped being so; if values differ by at most half the
sum of both intervals' widths, or the margin, which is the difference that counts as none, except
for a twentieth of them; and if L0 and training tokens are within a twentieth. The exceptions are
needed because processors round differently, and training amplifies that as much as another seed
would.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nullsae import paths, tables
from nullsae.aggregation.answer import read_answer
from nullsae.config.parse import parse_config
from nullsae.config.plain import read_yaml
from nullsae.core.errors import UserError
from nullsae.tables.study import CONTRASTS, PROVENANCE, STAGE_KEYS, VERDICTS

REFERENCE = Path(__file__).parent.parent / "docs/reference"
KEYS = tuple(name for column in STAGE_KEYS for name in column[0].split())
ARMS = ("real_l0", "l0", "real_training_tokens", "training_tokens")
NUMBERS = (
    *("real_value", "real_low", "real_high", "value", "value_low", "value_high"),
    *("difference", "difference_low", "difference_high", "margin", *ARMS),
)
COLUMNS = (*KEYS, "verdict", *NUMBERS)
# Columns of what made the files of a study: no host, no folder.
MAKERS = (
    *("verb", "nullsae", "commit", "python", "torch", "transformers", "cuda", "device_kind"),
    *("dtype", "threads", "precision"),
)
DIGITS = 5
MOST_LINES = 60  # that are printed
SHARE_UNDECIDED, SHARE_FAR, SHARE_ARMS = 1 / 6, 1 / 20, 1 / 20
VALUES = (
    ("real_value", "real_low", "real_high"),
    ("value", "value_low", "value_high"),
    ("difference", "difference_low", "difference_high"),
)
Row = Mapping[str, Any]


def contrasts(root: Path) -> list[dict[str, Any]]:
    """Return the comparisons of a study with their verdicts, as far as a reference contains them.

    Null dictionaries are compared with the learned one; other comparisons of theirs are left out.
    """
    config = parse_config(read_yaml(root / paths.RUN_CONFIG))
    found = []
    read = [
        tables.read_table(root / paths.TABLE.format(table=name), schema).to_pylist()
        for name, schema in (("contrasts", CONTRASTS), ("verdicts", VERDICTS))
    ]
    words = {tuple(row[key] for key in KEYS): row["verdict"] for row in read[1]}
    for row in read[0]:
        if row["sae"] is None or config.saes[row["sae"]].is_real:
            own = {name: row[name] for name in (*KEYS, *NUMBERS)}
            found.append({**own, "verdict": words[tuple(row[key] for key in KEYS)]})
    return found


def makers(root: Path) -> list[dict[str, Any]]:
    """Return each way in which files of a study were made, with the number of files."""
    rows = tables.read_table(root / paths.PROVENANCE, PROVENANCE).to_pylist()
    counts = Counter(tuple(row[name] for name in MAKERS) for row in rows)
    return [dict(zip(MAKERS, made, strict=True)) | {"n": n} for made, n in counts.items()]


def without_folders(value: Any) -> Any:
    """Return a config with each absolute path reduced to its last part."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~"))
    return Path(value).name if is_path else value


def write(root: Path, folder: Path) -> None:
    """Make the reference of a finished study.

    Raises:
        UserError: a table is missing, damaged or of another version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answer = rounded(read_answer(root).as_json())
    lines = {key: [json.dumps(each) for each in found] for key, found in answer.items()}
    text = ",\n".join(
        f' "{key}": [' + ",".join(f"\n  {line}" for line in found) + "\n ]"
        for key, found in lines.items()
    )
    (folder / "answer.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    _write_csv(folder / "contrasts.csv", COLUMNS, rounded(contrasts(root)))
    _write_csv(folder / "provenance.csv", (*MAKERS, "n"), makers(root))
    config = read_yaml(root / paths.RUN_CONFIG)
    shown = yaml.safe_dump(without_folders(config), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(shown, encoding="utf-8")


def rounded(value: Any) -> Any:
    """Return plain values, with numbers rounded to `DIGITS` digits."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _write_csv(file: Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, [*columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(folder: Path) -> list[dict[str, Any]]:
    """Read `contrasts.csv` of a reference, with None for empty cells."""
    with (folder / "contrasts.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key: text or None for key, text in row.items()} for row in csv.DictReader(file)]
    return [row | {n: float(text) for n in NUMBERS if (text := row[n])} for row in rows]


def disagreements(root: Path, folder: Path) -> list[str]:
    """List where a finished study disagrees with a reference, a line each."""
    found = {_key(row): row for row in contrasts(root)}
    wanted = {_key(row): row for row in read(folder)}
    lines = [f"{_name(key)}: not in the reference" for key in found.keys() - wanted.keys()]
    lines += [f"{_name(key)}: not in the study" for key in wanted.keys() - found.keys()]
    undecided, far = [], []
    for key in found.keys() & wanted.keys():
        name, words = _name(key), (wanted[key]["verdict"], found[key]["verdict"])
        if words[0] != words[1]:
            said = f"{name}: {words[1]}, in the reference {words[0]}"
            (undecided if "inconclusive" in words else lines).append(said)
        lines += [f"{name}: {text}" for text in _other_arms(found[key], wanted[key])]
        far += [f"{name}: {text}" for text in _far(found[key], wanted[key])]
    if len(undecided) > SHARE_UNDECIDED * len(wanted):
        lines += undecided
    if len(far) > SHARE_FAR * len(VALUES) * len(wanted):
        lines += far
    return sorted(lines)


def _far(row: Row, reference: Row) -> Iterator[str]:
    """Name the values of a comparison that are too far from the reference."""
    for name, low, high in VALUES:
        value, other = row[name], reference[name]
        if value is None or other is None:
            agrees = value is other
        else:
            widths = [each[high] - each[low] for each in (row, reference) if each[low] is not None]
            slack = (reference["margin"] or 0.0, sum(widths) / 2, abs(other) * 10.0**-DIGITS)
            agrees = abs(value - other) <= max(slack)
        if not agrees:
            ends = f"[{reference[low]}, {reference[high]}]"
            yield f"{name} {value}, in the reference {other} {ends}"


def _other_arms(row: Row, reference: Row) -> Iterator[str]:
    """Name the L0s and training tokens that differ from the reference."""
    for name in ARMS:
        value, other = row[name], reference[name]
        agrees = (
            value is other
            if None in (value, other)
            else abs(value - other) <= SHARE_ARMS * abs(other)
        )
        if not agrees:
            yield f"{name} {value}, in the reference {other}"


def _key(row: Row) -> tuple[str | None, ...]:
    return tuple(row[name] for name in KEYS)


def _name(key: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(filter(None, key)))


def main() -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("name", help="folder in docs/reference, such as default")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    given = parser.parse_args()
    try:
        if not given.check:
            write(given.study, REFERENCE / given.name)
            return 0
        lines = disagreements(given.study, REFERENCE / given.name)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    more = [f"and {len(lines) - MOST_LINES:,} more"] if len(lines) > MOST_LINES else []
    print("\n".join(lines[:MOST_LINES] + more) or f"agrees with docs/reference/{given.name}")
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main())
