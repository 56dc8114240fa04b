"""Stages that write several tables into a folder, and the rows of these.

The fields of a stage's parameters and its files are given side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nullsae import tables
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.jobs.metrics import EvaluateSaeParams
from nullsae.latents.collect import collect_latents
from nullsae.metrics.evaluate import evaluate_sae
from small_chain import COMPUTE, cell

Rows = list[dict[str, Any]]


def rows_in(file: Path) -> Rows:
    """The rows of a cell's table, which its file is named after."""
    rows: Rows = tables.read_table(file, tables.cell_schema(file.stem)).to_pylist()
    return rows


def _run(stage: Any, kind: Any, folder: Path, names: tuple[str, ...], given: dict[str, Any]) -> Any:
    own = {name: given.pop(name) for name in kind.model_fields if name in given}
    params = kind(**{"seed": 0, "keys": cell(), "compute": COMPUTE, **own})
    files = {name: folder / f"{name}.parquet" for name in names}
    stage(params, **files, **given)
    return {name: rows_in(file) for name, file in files.items()}


def collected(folder: Path, **given: Any) -> dict[str, Rows]:
    """The tables of `collect_latents`, beside the firings."""
    names = ("latents", "windows", "coverage")
    given = {"firings": folder / "firings.safetensors", **given}
    found: dict[str, Rows] = _run(collect_latents, CollectLatentsParams, folder, names, given)
    return found


def evaluated(folder: Path, **given: Any) -> dict[str, Rows]:
    """The tables of `evaluate_sae`."""
    names = ("reconstruction", "documents", "geometry")
    found: dict[str, Rows] = _run(evaluate_sae, EvaluateSaeParams, folder, names, given)
    return found
