"""The tables: one schema each, and the only way to write or read one.

Units stand in column names or in a field's `unit` metadata.
"""

from nullsae.tables.io import (
    AGGREGATED,
    MEASURED,
    SCHEMAS,
    cell_schema,
    read_table,
    write_table,
)

__all__ = ["AGGREGATED", "MEASURED", "SCHEMAS", "cell_schema", "read_table", "write_table"]
