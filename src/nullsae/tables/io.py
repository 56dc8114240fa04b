"""The tables of a study, and the only functions that write or read them.

Per-cell files have a table without its partition keys, which are in the path; `results/tables` has
it with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nullsae import paths
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, rebuild_command
from nullsae.tables import study
from nullsae.tables.cells import CELL_TABLES
from nullsae.tables.columns import schema as columns_of

# Columns with clock times. They stay in the cells' files, so that two runs of one config give
# identical tables.
MEASURED: dict[str, tuple[str, ...]] = {"history": ("tokens_per_second",)}

SCHEMAS: dict[str, pa.Schema] = {
    **{
        name: pa.schema(
            [*columns_of(*keys), *(c for c in columns if c.name not in MEASURED.get(name, ()))]
        )
        for name, (keys, columns) in CELL_TABLES.items()
    },
    "interpretability": study.INTERPRETABILITY,
    "contrasts": study.CONTRASTS,
    "verdicts": study.VERDICTS,
    "summaries": study.SUMMARIES,
    "discriminating_power": study.DISCRIMINATING_POWER,
    "latents_ranked": study.LATENTS_RANKED,
    "beating_placebo": study.BEATING_PLACEBO,
}
# Too large to copy into results/tables: read the cells' files as a data set.
NOT_AGGREGATED = ("windows",)
AGGREGATED = tuple(name for name in SCHEMAS if name not in NOT_AGGREGATED)


def cell_schema(table: str) -> pa.Schema:
    """Return the schema of a cell's file of `table`, without partition keys."""
    return CELL_TABLES[table][1]


def write_table(
    path: Path | str, rows: Iterable[dict[str, Any]] | pa.Table, schema: pa.Schema
) -> None:
    """Write rows as Parquet, atomically, in exactly this schema. The same rows give the same bytes.

    Raises:
        ValueError: a column is missing or unknown, or has a null but may not. This is a bug of
            nullsae, not a mistake of its user.
    """
    if isinstance(rows, pa.Table):
        if different := set(rows.column_names) ^ set(schema.names):
            raise ValueError(f"{path}: columns {sorted(different)}")
        table = rows.select(schema.names).cast(schema)
    else:
        rows, names = list(rows), set(schema.names)
        for row in rows:
            if row.keys() != names:
                raise ValueError(f"{path}: columns {sorted(row.keys() ^ names)}")
        table = pa.Table.from_pylist(rows, schema=schema)
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise ValueError(f"{path}: column {field.name} holds a null")
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(
    path: Path | str,
    schema: pa.Schema,
    *,
    columns: Sequence[str] | None = None,
    rebuild: str | None = None,
) -> pa.Table:
    """Read a Parquet file and check its columns against the schema.

    `rebuild` is the command that makes the file, if it is not a rule's output.

    Raises:
        UserError: it is missing, unreadable or has another schema; names the file and the command.
    """

    def command() -> str:
        return rebuild or rebuild_command(path)

    if not Path(path).is_file():
        raise UserError(f"{path}: the file is missing; rebuild it with: {command()}")
    try:
        # ParquetFile, not read_table: the latter would add partition columns from the path.
        table = pq.ParquetFile(path).read(columns=list(columns) if columns else None)
    except (pa.ArrowInvalid, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not readable ({first}); rebuild it with: {command()}") from None
    wanted = pa.schema([schema.field(name) for name in columns]) if columns else schema
    if not table.schema.equals(wanted):
        raise UserError(f"{path}: made by another version of nullsae; rebuild it with: {command()}")
    return table


def of_pool(windows: pa.Table, pool: str) -> pa.Table:
    """Return the rows of a table `windows` in one pool: `explain`, `score` or `top`."""
    # Not imported above, because every dry run would load it.
    import pyarrow.compute as pc

    return windows.filter(pc.equal(windows["pool"], pool))


def read_whole(root: Path, table: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table of all cells below `root`, checked as in `read_table`."""
    return read_table(root / paths.TABLE.format(table=table), SCHEMAS[table], columns=columns)
