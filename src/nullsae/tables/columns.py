"""Short notation for the columns of a table."""

from __future__ import annotations

import pyarrow as pa

_TYPES = {
    "int": pa.int64(),
    "int32": pa.int32(),
    "float": pa.float64(),
    "text": pa.string(),
    "flag": pa.bool_(),
    "ints": pa.list_(pa.int32()),
    "floats": pa.list_(pa.float32()),
    "flags": pa.list_(pa.bool_()),
}


def schema(*columns: tuple[str, str] | tuple[str, str, str]) -> pa.Schema:
    """Make a schema of columns (name, type) or (name, type, unit); types ending in `?` may be null.

    Several names, separated by blanks, are columns of the same type.
    """
    fields = []
    for names, kind, *unit in columns:
        metadata = {"unit": unit[0]} if any(unit) else None
        arrow, nullable = _TYPES[kind.rstrip("?")], kind.endswith("?")
        fields += [pa.field(name, arrow, nullable, metadata) for name in names.split()]
    return pa.schema(fields)
