"""A study's explanations of latents and its judged windows, as delphi and Neuronpedia keep them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from nullsae import paths, tables
from nullsae.core.errors import UserError
from nullsae.corpus.token_text import token_text
from nullsae.latents.exports.cell import LatentFolder

Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """The windows of a latent that a scorer judged, and the scores."""

    windows: list[Row]
    """Rows with the fields of delphi's `ClassifierOutput`."""
    balanced_accuracy: float | None
    judge: str | None


@dataclass(frozen=True)
class Explained:
    """One explainer's explanations of a cell's latents."""

    explainer: str
    texts: dict[int, str]
    model: dict[int, str | None]
    """The author of each explanation."""
    judged: dict[str, dict[int, Judged]] = field(default_factory=dict)
    """By scorer, then by latent."""


def explained_by(cell: LatentFolder, explainer: str, tokenizer: Tokenizer) -> Explained:
    """Read one explainer's explanations of a cell's latents, and all of their scores.

    Raises:
        UserError: a file is missing or damaged.
    """
    root = cell.folder.absolute().parents[len(cell.keys) + 1]
    keys = {**cell.keys, "explainer": explainer}
    file = root / paths.EXPLANATIONS.format(**keys)
    if not file.parent.is_dir():
        there = sorted(f.name.partition("=")[2] for f in file.parents[1].glob("explainer=*"))
        raise UserError(
            f"--explainer: {explainer!r} explained nothing in {cell.folder}; "
            f"explainers that did: {', '.join(there) or 'none'}"
        )
    table = tables.read_table(file, tables.cell_schema("explanations"))
    rows = table.filter(table["explanation"].is_valid()).to_pylist()
    found = Explained(
        explainer,
        {row["latent"]: row["explanation"] for row in rows},
        {row["latent"]: row["model"] for row in rows},
    )
    windows = _windows(cell)
    scored = (root / paths.SCORES_FOLDER.format(**keys, scorer="x")).parent
    for folder in sorted(scored.glob("scorer=*")):
        scores = tables.read_table(folder / "scores.parquet", tables.cell_schema("scores"))
        said = tables.read_table(folder / "predictions.parquet", tables.cell_schema("predictions"))
        own: dict[int, list[Row]] = {}
        for row in said.to_pylist():
            # Windows that were judged elsewhere are not in this table.
            if (window := windows.get((row["latent"], row["window"]))) is not None:
                own.setdefault(row["latent"], []).append(_as_delphi(row, window, tokenizer))
        found.judged[folder.name.removeprefix("scorer=")] = {
            row["latent"]: Judged(own[row["latent"]], row["balanced_accuracy"], row["judge"])
            for row in scores.to_pylist()
            if row["latent"] in own
        }
    return found


def _windows(cell: LatentFolder) -> dict[tuple[int, int], Row]:
    names = ["latent", "window", "pool", "token_ids", "activations"]
    table = tables.read_table(
        cell.folder / "windows.parquet", tables.cell_schema("windows"), columns=names
    )
    rows: pa.Table = tables.of_pool(table, "score")
    return {(row["latent"], row["window"]): row for row in rows.to_pylist()}


def _as_delphi(row: Row, window: Row, tokenizer: Tokenizer) -> Row:
    probability = row["probability"]
    prediction = None if probability is None else probability >= 0.5
    return {
        "str_tokens": [token_text(tokenizer, token) for token in window["token_ids"]],
        "activations": window["activations"],
        "distance": 0 if row["quantile"] is None else row["quantile"],
        "activating": row["active"],
        "prediction": prediction,
        "probability": probability,
        "correct": None if prediction is None else prediction == row["active"],
    }
