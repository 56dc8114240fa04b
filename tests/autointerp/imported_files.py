"""Explanations and scores as other tools write them, made by hand for the tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autointerp_cells import KEYS, window, write_windows

from nullsae.tables import cell_schema, write_table

N_LATENTS = 8
SAMPLED = (1, 2, 5)


def write_cell(
    folder: Path, windows: list[dict[str, Any]] | None = None, sampled: Sequence[int] = SAMPLED
) -> Path:
    """Write an SAE of 8 latents, three of them sampled: its windows and the tables next to them."""
    rows = windows or [
        window(n, 100 * n + i, [n, 10 + i], [float(i % 2), 0.0], pool=pool)
        for n in SAMPLED
        for pool in ("explain", "score")
        for i in range(4)
    ]
    path = write_windows(folder / "windows.parquet", rows)
    latents = [_empty("latents") | {"latent": n, "sampled": n in sampled} for n in range(N_LATENTS)]
    write_table(folder / "latents.parquet", latents, cell_schema("latents"))
    coverage = [_empty("coverage") | {"n_latents": N_LATENTS}]
    write_table(folder / "coverage.parquet", coverage, cell_schema("coverage"))
    return path


def _empty(table: str) -> dict[str, Any]:
    """Return a row of a table without any values."""
    zeros = {"int64": 0, "double": 0.0, "bool": False, "string": ""}
    return {
        field.name: None if field.nullable else zeros[str(field.type)]
        for field in cell_schema(table)
    }


def judged(
    active: bool, prediction: bool | None, probability: float | None, *tokens: str, **more: Any
) -> dict[str, Any]:
    """Return a window as delphi writes it."""
    values = [float(active and i == 0) for i in range(len(tokens))]
    correct = None if prediction is None else prediction == active
    return {
        **{"str_tokens": list(tokens), "activations": values, "distance": 1},
        **{"activating": active, "prediction": prediction, "probability": probability},
        "correct": correct,
        **more,
    }


def write_delphi(
    run: Path,
    explanations: dict[int, Any],
    scores: dict[str, dict[int, list[dict[str, Any]]]] | None = None,
    module: str = "layers.1",
) -> Path:
    """A run's folder."""
    files = {f"explanations/{module}_latent{n}.txt": text for n, text in explanations.items()}
    for kind, of_latent in (scores or {}).items():
        safe = module.replace("/", "--")
        files |= {f"scores/{kind}/{safe}_latent{n}.txt": rows for n, rows in of_latent.items()}
    for name, value in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(value))
    return run


def write_lines(path: Path, *rows: Any) -> Path:
    """Write JSON lines, compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def row(index: int, text: str | None, writer: str = "gpt", **more: Any) -> dict[str, Any]:
    """Return an explanation as Neuronpedia exports it."""
    return {
        **{"id": f"c{index}", "modelId": "gpt2", "layer": "1-res", "index": str(index)},
        **{"description": text, "explanationModelName": writer, "typeName": "oai", **more},
    }


def cell_keys() -> dict[str, str]:
    return {name: str(value) for name, value in KEYS.items()}
