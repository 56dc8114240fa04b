from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nullsae import tables
from nullsae.tables.cells import CELL_TABLES
from refusing import refused
from small_chain import flip_byte

SAMPLES: dict[str, Any] = {
    "int64": 3,
    "double": 0.5,
    "string": "text",
    "bool": True,
    "list<item: bool>": [True, False],
    "list<item: int32>": [1, 2],
    "list<item: float>": [0.5, 2.0],
}


def row_of(schema: pa.Schema, **changes: Any) -> dict[str, Any]:
    plain = {field.name: SAMPLES[str(field.type).replace("element", "item")] for field in schema}
    return {**plain, **changes}


@pytest.mark.parametrize("table", sorted(tables.SCHEMAS))
def test_a_written_table_has_its_schema(table: str, tmp_path: Path) -> None:
    schema = tables.SCHEMAS[table]
    file = tmp_path / "table.parquet"
    rows = [row_of(schema), row_of(schema)]
    for field in schema:
        if field.nullable:
            rows[1][field.name] = None
    tables.write_table(file, rows, schema)
    assert pq.read_schema(file).equals(schema)
    assert tables.read_table(file, schema).to_pylist() == rows
    # Units survive the round trip, for readers of the file alone.
    written = pq.read_schema(file)
    for field in schema:
        assert (written.field(field.name).metadata or {}).get(b"unit") == (
            field.metadata or {}
        ).get(b"unit")


@pytest.mark.parametrize("table", sorted(CELL_TABLES))
def test_a_cell_holds_its_partition_keys_in_its_path_alone(table: str) -> None:
    keys, columns = CELL_TABLES[table]
    names = [name for name, _ in keys]
    assert not set(names) & set(columns.names)
    shared = [n for n in columns.names if n not in tables.MEASURED.get(table, ())]
    assert tables.SCHEMAS[table].names == [*names, *shared]
    assert tables.cell_schema(table) is columns


def test_columns_in_units_of_activation_say_so() -> None:
    """Names without units: columns that depend on the subject's scale must say so."""
    for table, column in (("reconstruction", "l1"), ("latents", "max_activation")):
        metadata = tables.SCHEMAS[table].field(column).metadata
        assert metadata[b"unit"].startswith(b"activation units")


@pytest.mark.parametrize("change", ["missing", "unknown", "null"])
def test_a_defective_row_is_refused(change: str, tmp_path: Path) -> None:
    schema = tables.cell_schema("coverage")
    row = row_of(schema)
    if change == "missing":
        del row["n_alive"]
    elif change == "unknown":
        row["n_living"] = 3
    else:
        row["n_alive"] = None
    file = tmp_path / "table.parquet"
    with pytest.raises(ValueError, match="n_alive" if change != "unknown" else "n_living"):
        tables.write_table(file, [row_of(schema), row], schema)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["missing", "unknown", "null"])
def test_a_defective_arrow_table_is_refused(change: str, tmp_path: Path) -> None:
    schema = tables.cell_schema("coverage")
    table = pa.Table.from_pylist([row_of(schema)] * 2)
    if change == "missing":
        table = table.drop_columns(["n_alive"])
    elif change == "unknown":
        table = table.append_column("n_living", pa.array([1, 2]))
    else:
        column = schema.get_field_index("n_alive")
        table = table.set_column(column, "n_alive", pa.array([1, None]))
    with pytest.raises(ValueError, match="n_alive" if change != "unknown" else "n_living"):
        tables.write_table(tmp_path / "table.parquet", table, schema)
    assert not list(tmp_path.iterdir())


def test_rows_and_an_arrow_table_give_the_same_bytes(tmp_path: Path) -> None:
    schema = tables.cell_schema("history")
    rows = [row_of(schema, step=step) for step in range(5)]
    shuffled = pa.Table.from_pylist(rows).select(list(reversed(schema.names)))
    tables.write_table(tmp_path / "one", rows, schema)
    tables.write_table(tmp_path / "two", iter(rows), schema)
    tables.write_table(tmp_path / "three", shuffled, schema)
    one = (tmp_path / "one").read_bytes()
    assert (tmp_path / "two").read_bytes() == one
    assert (tmp_path / "three").read_bytes() == one


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    schema = tables.cell_schema("windows")
    tables.write_table(tmp_path / "empty.parquet", [], schema)
    found = tables.read_table(tmp_path / "empty.parquet", schema)
    assert found.num_rows == 0
    assert found.schema.equals(schema)


def test_partition_folders_are_columns_of_a_tree_and_not_of_a_cell(
    tmp_path: Path,
) -> None:
    schema = tables.cell_schema("coverage")
    for draw in (0, 1):
        file = tmp_path / f"subject=a/draw={draw}/coverage.parquet"
        tables.write_table(file, [row_of(schema)], schema)
        assert tables.read_table(file, schema).schema.names == schema.names
    whole = pq.read_table(tmp_path)
    assert whole.column_names == [*schema.names, "subject", "draw"]
    assert sorted(whole["draw"].to_pylist()) == [0, 1]


def test_a_missing_damaged_or_foreign_table_is_refused(tmp_path: Path) -> None:
    schema = tables.cell_schema("coverage")
    file = tmp_path / "coverage.parquet"

    def refusal(columns: list[str] | None = None) -> str:
        text = refused(tables.read_table, file, schema, columns=columns)
        assert text.endswith(f"-- {file}")
        return text

    assert refusal().startswith(f"{file}: the file is missing")
    tables.write_table(file, [row_of(tables.cell_schema("models"))], tables.cell_schema("models"))
    assert refusal().startswith(f"{file}: made by another version of nullsae")
    assert refusal(["n_alive"]).startswith(f"{file}: made by another version of nullsae")
    tables.write_table(file, [row_of(schema)], schema)
    assert tables.read_table(file, schema, columns=["n_alive"]).to_pylist() == [{"n_alive": 3}]
    flip_byte(file, -6)  # the length of the footer
    assert refusal().startswith(f"{file}: not readable (")
    file.write_bytes(file.read_bytes()[:40])
    assert refusal().startswith(f"{file}: not readable (")
