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
}


def schema(*columns: tuple[str, str] | tuple[str, str, str]) -> pa.Schema:
    """Columns as (name, type) or (name, type, unit); a type ending in `?` may be null."""
    fields = []
    for name, kind, *unit in columns:
        metadata = {"unit": unit[0]} if any(unit) else None
        fields.append(
            pa.field(name, _TYPES[kind.rstrip("?")], nullable=kind.endswith("?"), metadata=metadata)
        )
    return pa.schema(fields)
