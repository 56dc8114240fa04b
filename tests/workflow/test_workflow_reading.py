"""The instructions of results/README.md, run literally on a finished study."""

from __future__ import annotations

import re
from glob import glob
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from workflow_study import REPOSITORY, Study

pytestmark = pytest.mark.workflow
README = (REPOSITORY / "results/README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Each name once, in its tree; a row of the table names those after the first without it.
NAMES = {
    (tree, name)
    for row in re.findall(r"^\|[^|]+\| `(\w+/\*\*/\w+\.parquet`.*) \|$", README, re.MULTILINE)
    for tree in [row.partition("/")[0]]
    for name in re.findall(r"(\w+\.parquet)`", row)
}


@pytest.fixture
def inside(study: Study, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(study.folder)
    return study.folder


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("import ")[1].split()[0])
def test_each_line_of_the_readme_runs(
    inside: Path, block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in re.findall(r"^import (polars|duckdb)", block, re.MULTILINE):
        pytest.importorskip(module)
    exec(block, {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def test_the_three_agree_on_the_mean_auroc_of_each_arm(inside: Path) -> None:
    pl, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    found: list[Any] = []
    for name, block in zip(("pandas", "polars", "duckdb", "table"), BLOCKS, strict=False):
        space: dict[str, Any] = {}
        exec(block, space)
        scores = space["scores"]
        if name in ("pandas", "table"):
            keys = ["variant", "explainer", "scorer"]
            means = scores.astype(dict.fromkeys(keys, str)).groupby(keys)["auroc"].mean()
            found.append({key: pytest.approx(value) for key, value in means.items()})
        elif name == "polars":
            means = scores.group_by("variant", "explainer", "scorer").agg(pl.col("auroc").mean())
            found.append({row[:3]: row[3] for row in means.rows()})
        else:
            found.append({row[:3]: row[3] for row in scores.fetchall()})
    del duckdb
    assert len(found) == 4
    assert len(found[1]) == 2 * 2 * 2  # variants, explainers, scorers
    for other in (found[0], found[3]):
        assert other == found[1]
    assert found[0] == found[2]


def test_every_kind_of_parquet_below_results_is_in_the_readme(inside: Path) -> None:
    there = {
        (Path(file).parts[1], Path(file).name)
        for file in glob("results/**/*.parquet", recursive=True)
        if "=" in file and not file.startswith("results/work")
    }
    assert there <= NAMES
    # This small study evaluates no SAE on another variant.
    assert NAMES - there <= {("metrics", "cross_evaluation.parquet")}


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_one_file_name_per_glob_gives_all_rows_of_one_kind(inside: Path, library: str) -> None:
    module = pytest.importorskip(library)
    for tree, name in sorted(NAMES):
        pattern = f"results/{tree}/**/{name}"
        files = sorted(glob(pattern, recursive=True))
        if not files:
            continue
        metadata = [pq.read_metadata(file) for file in files]
        n_rows, columns = sum(m.num_rows for m in metadata), metadata[0].schema.to_arrow_schema()
        found: Any
        if library == "pandas":
            found = pd.read_parquet(files, partitioning="hive")
            n_found, names = len(found), set(found.columns)
        elif library == "polars":
            found = module.read_parquet(pattern, hive_partitioning=True)
            n_found, names = found.height, set(found.columns)
        else:
            found = module.sql(f"FROM read_parquet('{pattern}', hive_partitioning = true)")
            n_found, names = len(found), set(found.columns)
        keys = set(re.findall(r"(\w+)=", files[0]))
        assert n_found == n_rows, pattern
        assert names == {*columns.names} | keys, pattern


def test_a_whole_tree_is_no_table(inside: Path) -> None:
    """Why the README names one file: reading a whole tree fails, or mixes rows of two kinds."""
    scores, predictions = (
        sum(pq.read_metadata(f).num_rows for f in glob(f"results/scores/**/{name}", recursive=True))
        for name in ("scores.parquet", "predictions.parquet")
    )
    try:
        mixed = len(pd.read_parquet("results/scores"))
    except Exception:
        return
    assert mixed == scores + predictions > scores
