from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from workflow_study import Study, edited

from nullsae import __version__, paths, tables
from nullsae.aggregation.provenance import artifacts
from nullsae.config.parse import parse_config
from nullsae.jobs.grid import cell_files
from nullsae.report.names import figure_names

pytestmark = pytest.mark.workflow


def assert_same(found: pa.Schema, wanted: pa.Schema) -> None:
    """Return names, types, nulls and units; Parquet renames the items of lists."""
    assert found.equals(wanted)
    assert [field.metadata for field in found] == [field.metadata for field in wanted]


@pytest.mark.parametrize("table", tables.AGGREGATED)
def test_every_table_is_made_in_its_schema_and_has_rows(study: Study, table: str) -> None:
    found = pq.ParquetFile(study.folder / paths.TABLE.format(table=table))
    assert_same(found.schema_arrow, tables.SCHEMAS[table])
    # Not asked for by this study; test_workflow_controls.py asks for it.
    assert (found.metadata.num_rows > 0) != (table == "cross_evaluation")


def test_every_cell_file_is_made_in_its_schema(study: Study) -> None:
    for table, files in cell_files(parse_config(edited())).items():
        for file in files:
            schema = pq.ParquetFile(study.folder / file).schema_arrow
            assert_same(schema, tables.cell_schema(table))


def test_the_report_and_all_figures_are_made(study: Study) -> None:
    page = (study.folder / paths.REPORT).read_text(encoding="utf-8")
    assert "Workflow test" in page
    assert "rerandomized" in page
    names = figure_names(parse_config(edited()))
    files = [study.folder / paths.FIGURE.format(figure=name, format="svg") for name in names]
    assert files
    assert all(file.read_bytes().startswith(b"<svg") for file in files)
    assert sorted(files) == sorted((study.folder / "results/figures").iterdir())


def test_a_second_run_has_nothing_to_do(study: Study) -> None:
    assert "Nothing to be done" in study.make()


def test_no_job_leaves_a_temporary_or_unfinished_file(study: Study) -> None:
    results = study.folder / "results"
    assert [p for p in results.rglob("*") if ".partial" in p.name or p.name.startswith(".")] == []
    # Copies of evaluations stay, so that adding an SAE repeats none.
    assert [f.name for f in (results / "work").glob("*")] == ["evaluated"]


def test_every_cell_says_who_made_it_and_every_log_begins_with_it(study: Study) -> None:
    rows = pq.read_table(study.folder / paths.PROVENANCE).to_pylist()
    config = parse_config(edited())
    expected = [
        (kind, folder) for kind, _, folder in artifacts(config) if (study.folder / folder).is_dir()
    ]
    assert {kind for kind, _ in expected} == {
        *("corpus", "model", "activations", "sae", "metrics", "overlap", "latents"),
        *("explanations", "scores"),
    }
    assert all((study.folder / folder / "provenance.json").is_file() for _, folder in expected)
    assert len(rows) == len(expected)
    assert {row["nullsae"] for row in rows} == {__version__}
    # Jobs of one machine: no arm differs, though only some of them load Transformers.
    assert {row["differs_from_trained"] for row in rows} == {None}
    (tokens,) = {row["tokens_seen"] for row in rows if row["kind"] == "sae"}
    assert tokens == 16_384
    logs = sorted((study.folder / "results/logs").rglob("*.log"))
    assert len(logs) > len(expected) / 2
    for log in logs:
        first = log.read_text(encoding="utf-8").partition("\n")[0]
        assert first.startswith(f"nullsae {__version__}"), log
    training = next(log for log in logs if "train_sae" in log.parts)
    assert "16,384 tokens of 16 dimensions" in training.read_text(encoding="utf-8")


def test_run_config_is_the_parsed_config_with_all_defaults(study: Study) -> None:
    written = yaml.safe_load((study.folder / paths.RUN_CONFIG).read_text(encoding="utf-8"))
    config = parse_config(edited())
    assert written == config.model_dump(mode="json")
    assert parse_config(written) == config


def test_the_code_under_test_is_the_frozen_copy(study: Study) -> None:
    result = study.run(["python", "-c", "import nullsae; print(nullsae.__file__)"])
    assert result.stdout.strip() == str(study.tree / "src/nullsae/__init__.py")
