"""The tables: one schema each, and the only functions that write or read them.

In: rows, or Parquet files. Out: Parquet files in exactly their schema; the same rows give the same
bytes. Units are in column names or in a field's `unit` metadata. Nothing here may know how a number
is computed.
"""

from nullsae.tables.io import (
    AGGREGATED,
    MEASURED,
    SCHEMAS,
    cell_schema,
    of_pool,
    read_table,
    read_whole,
    write_table,
)

__all__ = [
    "AGGREGATED",
    "MEASURED",
    "SCHEMAS",
    "cell_schema",
    "of_pool",
    "read_table",
    "read_whole",
    "write_table",
]
