"""The tables: one schema each, and the only way to write or read one.

In: rows, or Parquet files. Out: Parquet files in exactly their schema, the same rows as the same
bytes. Units stand in column names or in a field's `unit` metadata. Nothing here may know how a
number is computed.
"""

from nullsae.tables.io import (
    AGGREGATED,
    MEASURED,
    SCHEMAS,
    cell_schema,
    read_table,
    read_whole,
    write_table,
)

__all__ = [
    "AGGREGATED",
    "MEASURED",
    "SCHEMAS",
    "cell_schema",
    "read_table",
    "read_whole",
    "write_table",
]
