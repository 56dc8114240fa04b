"""`benchmarks/compare_results.py`: which results are the same, and how differences are named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

pytestmark = pytest.mark.usefixtures("warm")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compare_results.py"


def table(path: Path, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def compare(old: Path, new: Path, *options: str) -> tuple[int, str]:
    """Run the script; return its exit code and output."""
    command = [sys.executable, str(SCRIPT), str(old), str(new), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Make two project folders with equal results."""
    results = tmp_path / "old" / "results"
    table(results / "tables/scores.parquet", latent=[1, 2], auroc=[0.5, float("nan")])
    table(results / "saes/sae=topk/history.parquet", loss=[0.5], tokens_per_second=[100.0])
    save_file({"W_enc": np.ones((2, 3), np.float32)}, results / "saes/sae=topk/sae.safetensors")
    (results / "saes/sae=topk/cfg.json").write_text(json.dumps({"k": 8, "of": {"seed": 0}}))
    (results / "logs").mkdir()
    (results / "logs/a.log").write_text("old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    return tmp_path / "old", tmp_path / "new"


def test_equal_trees_are_the_same_whatever_their_logs_and_clocks(trees: tuple[Path, Path]) -> None:
    old, new = trees
    (new / "results/logs/a.log").write_text("new")
    table(new / "results/saes/sae=topk/history.parquet", loss=[0.5], tokens_per_second=[99.0])
    code, text = compare(old, new / "results")
    assert (code, text.splitlines()) == (
        0,
        ["tables: 1 of 1 are the same", "saes: 3 of 3 are the same"],
    )


def test_a_table_that_differs_is_named_by_its_columns_and_rows(trees: tuple[Path, Path]) -> None:
    old, new = trees
    table(new / "results/tables/scores.parquet", latent=[1, 2], auroc=[0.75, float("nan")])
    code, text = compare(old, new)
    assert code == 1
    assert "tables: 0 of 1 are the same" in text
    assert "column auroc: 1 of 2 rows differ, by at most 0.25 (row 0: 0.5, now 0.75)" in text
    assert "column latent" not in text


def test_named_columns_may_differ_or_be_new(trees: tuple[Path, Path]) -> None:
    old, new = trees
    table(new / "results/tables/scores.parquet", latent=[1, 2], auroc=[0.75, None], cost=[1, 1])
    assert compare(old, new, "--columns", "auroc,cost")[0] == 0
    assert "column cost: only in the new file" in compare(old, new, "--columns", "auroc")[1]


@pytest.mark.parametrize("lost", ["old", "new"])
def test_a_table_of_one_side_only_differs(trees: tuple[Path, Path], lost: str) -> None:
    old, new = trees
    ({"old": old, "new": new}[lost] / "results/tables/scores.parquet").unlink()
    assert compare(old, new)[0] == 1


def test_other_files_are_summed_up_and_leave_the_exit_code(trees: tuple[Path, Path]) -> None:
    old, new = trees
    folder = new / "results/saes/sae=topk"
    save_file({"W_enc": np.full((2, 3), 3, np.float32)}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": 8, "of": {"seed": 1}}))
    code, text = compare(old, new)
    assert code == 0
    assert "saes: 1 of 3 are the same" in text
    assert "tensor W_enc: 6 of 6 numbers differ, by at most 2" in text
    assert "key of.seed" in text


def test_numbers_in_bfloat16_are_compared_as_numbers(trees: tuple[Path, Path]) -> None:
    old, new = trees
    for tree, value in ((old, 1.0), (new, 1.5)):
        numbers = {"rows": torch.tensor([1.0, value, torch.nan], dtype=torch.bfloat16)}
        save_tensors(numbers, tree / "results/saes/sae=topk/rows.safetensors")
    assert "tensor rows: 1 of 3 numbers differ, by at most 0.5" in compare(old, new)[1]


def test_zeros_of_other_signs_differ(trees: tuple[Path, Path]) -> None:
    old, new = trees
    for tree, value in ((old, 0.0), (new, -0.0)):
        save_tensors({"rows": torch.tensor([value])}, tree / "results/saes/rows.safetensors")
    assert "tensor rows: 1 of 1 numbers differ, by at most 0" in compare(old, new)[1]
