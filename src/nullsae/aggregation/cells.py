"""The cells of a study as columns of numbers, one row per unit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nullsae import paths, tables
from nullsae.config.metrics import Level
from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.jobs.grid import Keys
from nullsae.statistics.bootstrap import Floats, Ints
from nullsae.tables.cells import CELL_TABLES

# The keys of an SAE, and of a comparison of variants.
SAE_KEYS = ("subject", "variant", "draw", "site", "sae", "seed")
GROUP_KEYS = ("subject", "site", "sae", "explainer", "scorer")


class Units:
    """A cell's table, sorted by unit."""

    def __init__(self, keys: Keys, table: pa.Table, unit: Level) -> None:
        """Sort a table without its keys by the column named as `unit`.

        With unit "cell", the table has one row.
        """
        self.keys = keys
        self.unit = unit
        self.table = table if unit == "cell" else table.sort_by(unit)
        self._columns: dict[str, tuple[Floats, npt.NDArray[np.bool_]]] = {}

    @property
    def arm(self) -> tuple[str | None, ...]:
        """The keys of the comparison and the variant."""
        return (*(self.keys.get(name) for name in GROUP_KEYS), self.keys["variant"])

    @property
    def sae(self) -> tuple[str, ...]:
        """The keys of the SAE."""
        return tuple(self.keys[name] for name in SAE_KEYS)

    @cached_property
    def ids(self) -> Ints:
        """The units' numbers, ascending, int64 [n_units]; 0 for a whole cell."""
        if self.unit == "cell":
            return np.zeros(len(self.table), dtype=np.int64)
        return np.asarray(self.table[self.unit].to_numpy(), dtype=np.int64)

    def column(self, name: str) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return a column, float64 [n_units] with NaN for nulls, and where it is valid, bool."""
        if name not in self._columns:
            column = self.table[name]
            if pa.types.is_boolean(column.type):
                column = column.cast(pa.int8())
            valid = np.asarray(column.is_valid().to_numpy(), dtype=bool)
            self._columns[name] = column.cast(pa.float64()).to_numpy(), valid
        return self._columns[name]

    def looked_up(self, name: str, ids: Ints) -> Floats:
        """Return a column at units `ids`, int64 [n_ids]: float64 [n_ids], NaN for missing ones."""
        if not len(self.ids):
            return np.full(len(ids), np.nan)
        place = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[place] == ids, self.column(name)[0][place], np.nan)


def read_cells(table: str, files: Iterable[str], root: Path) -> list[tuple[Keys, pa.Table]]:
    """Read each file of a table with its keys, in the order given.

    Raises:
        UserError: a file is missing, damaged or from another version.
    """
    schema = tables.cell_schema(table)
    # Keys come from the relative path, because `root` may contain a folder with = in its name.
    return [(paths.partition_keys(f), tables.read_table(root / f, schema)) for f in files]


def with_keys(schema: pa.Schema, keys: Keys, part: pa.Table) -> pa.Table:
    """Return a cell's rows with its keys as leading columns, restricted to the schema's columns."""

    def column(field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if field.name not in keys:
            return part[field.name]
        return pa.repeat(pa.scalar(keys[field.name]).cast(field.type), part.num_rows)

    return pa.Table.from_arrays([column(field) for field in schema], schema=schema)


def whole_table(table: str, cells: list[tuple[Keys, pa.Table]]) -> pa.Table:
    """Return one table of all cells, without columns that depend on the time."""
    schema = tables.SCHEMAS[table]
    leading = [name for name, _ in CELL_TABLES[table][0]]
    parts = [with_keys(schema, {n: keys[n] for n in leading}, part) for keys, part in cells]
    return pa.concat_tables([schema.empty_table(), *parts])


def check_same_documents(cells: Iterable[Units]) -> None:
    """Check that all cells of a subject list the same documents, as paired contrasts need.

    Raises:
        UserError: names the cell that differs.
    """
    first: dict[str, tuple[str, pa.Array]] = {}
    for cell in cells:
        path = paths.DOCUMENTS.format(**cell.keys)
        documents = cell.table["document"].combine_chunks()
        if documents.null_count or len(documents.unique()) < len(documents):
            problem = "a document is listed twice"
        else:
            reference, expected = first.setdefault(cell.keys["subject"], (path, documents))
            if documents.equals(expected):
                continue
            problem = f"{len(documents)} documents that are not the {len(expected)} of {reference}"
        raise UserError(f"{path}: {problem}; rebuild it with: {rebuild_command(path)}")
