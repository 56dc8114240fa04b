"""CSV and Parquet files, by the names of their columns.

    latent, explanation                            and perhaps model
    latent, score                                  or auroc, auprc, f1, balanced_accuracy
    latent, active, probability                    one window per row; perhaps tokens, activations

In a CSV file, lists are JSON, and an empty field is a missing value.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nullsae.autointerp.imported.layout import (
    METRICS,
    About,
    JudgedWindow,
    Layout,
    OncePerLatent,
    Said,
    Scored,
    Selection,
    judged_window,
)
from nullsae.autointerp.imported.reading import (
    MOST_BYTES,
    MOST_LINE_BYTES,
    fail,
    flag_of,
    latent_of,
    lines,
    list_of,
    opened,
    share_of,
    shown,
)
from nullsae.core.errors import first_line

Row = Mapping[str, Any]
SUFFIXES = (".csv", ".parquet")


class Tabular(Layout):
    """A file with a header."""

    def explanations(self, path: Path, about: About) -> Mapping[int, Said]:
        found = OncePerLatent[Said]("keep one")
        selection = Selection(model=about.model)
        for where, row in rows_of(path, ("latent", "explanation")):
            latent, model = latent_of(row["latent"], about.n_latents, where), row.get("model")
            for name in ("explanation", "model"):
                if not isinstance(row.get(name), str | None):
                    fail(where, f"{name} {shown(row[name])} is not a text")
            if selection.takes("model", model):
                found.add(latent, Said(row["explanation"], model), where)
        return selection.of(found.found, path)

    def scores(self, path: Path, about: About) -> Mapping[int, Scored]:
        windows: dict[int, Scored] = {}
        numbers = OncePerLatent[Scored]("keep one")
        for where, row in rows_of(path, ("latent",)):
            latent = latent_of(row["latent"], about.n_latents, where)
            if "probability" in row:
                windows.setdefault(latent, Scored()).windows.append(_window(row, where))
            else:
                numbers.add(latent, _scored(row, about.metric, where), where)
        return {**numbers.found, **windows}


def _window(row: Row, where: str) -> JudgedWindow:
    if "active" not in row:
        fail(where, "no column active: whether the latent is active in the window")
    given = row["probability"]
    probability = math.nan if given is None else share_of(given, "probability", where)
    listed = {
        name: list_of([] if row.get(name) is None else row[name], kind, name, where)
        for name, kind in (("tokens", str), ("activations", float))
    }
    active = flag_of(row["active"], "active", where)
    if listed["activations"] and not listed["tokens"]:
        fail(where, "activations without tokens")
    return judged_window(active, probability, listed["tokens"], listed["activations"], where)


def _scored(row: Row, metric: str | None, where: str) -> Scored:
    named = {name: name for name in METRICS if name in row}
    if "score" in row:
        if metric is None:
            fail(
                where,
                f"a column score; set `metric` to what its numbers are, or rename the column to "
                f"{', '.join(METRICS)}",
            )
        named[metric] = "score"
    if not named:
        fail(where, f"neither score, {', '.join(METRICS)} nor probability among the columns")
    return Scored(
        metrics={
            to: share_of(row[name], name, where)
            for to, name in named.items()
            if row[name] is not None
        }
    )


def rows_of(path: Path, needed: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """Yield the place of each row, and its values by column name, None for missing ones.

    Raises:
        UserError: the file is damaged, too large, or lacks a needed column.
    """
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    is_first = True
    for where, row in rows:
        if is_first:
            for name in needed:
                if name not in row:
                    fail(path, f"no column {name}; it has {', '.join(map(shown, row))}")
            is_first = False
        yield where, row
    if is_first:
        fail(path, "no row in it")


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield rows of a CSV file; a quoted field may contain line breaks."""
    csv.field_size_limit(MOST_LINE_BYTES)
    try:
        reader = csv.reader(_decoded(path), strict=True)
        names = [name.strip().lower() for name in next(reader, [])]
        if len(set(names)) < len(names):
            fail(path, f"a column name is repeated: {', '.join(map(shown, names))}")
        for values in filter(None, reader):  # blank lines are not rows
            where = f"{path}, line {reader.line_num}"
            if len(values) != len(names):
                fail(where, f"{len(values)} fields, but the header has {len(names)}")
            yield where, {n: v if v else None for n, v in zip(names, values, strict=True)}
    except csv.Error as error:
        fail(path, f"not a CSV file: line {reader.line_num}: {first_line(error)}")


def _decoded(path: Path) -> Iterator[str]:
    for where, line in lines(path):
        try:
            yield line.decode("utf-8-sig")
        except UnicodeDecodeError:
            fail(where, "not UTF-8")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path) as stream:
        try:
            file = pq.ParquetFile(stream)
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > MOST_BYTES:
                fail(path, f"more than {MOST_BYTES:,} bytes unpacked, which is too large")
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            fail(path, f"not a Parquet file ({first_line(error)})")
