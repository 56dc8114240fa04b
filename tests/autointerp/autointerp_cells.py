"""Synthetic cells for the tests of autointerp: windows, explanations, tokenizers, params."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nullsae.autointerp.examples import Examples, examples_of
from nullsae.autointerp.score import score_latents
from nullsae.config.parse import parse_section
from nullsae.jobs.autointerp import ExplainLatentsParams, ScoreLatentsParams
from nullsae.jobs.keys import CellKeys
from nullsae.tables import cell_schema, read_table, write_table

KEYS = {
    "subject": "small",
    "variant": "trained",
    "draw": 0,
    "site": "resid_post.1",
    "sae": "topk",
    "seed": 0,
}


def explain_params(seed: int = 0, **explainer: Any) -> ExplainLatentsParams:
    data = {"seed": seed, "keys": KEYS, "explainer": explainer}
    return parse_section(ExplainLatentsParams, data, where="params")


def score_params(seed: int = 0, **scorer: Any) -> ScoreLatentsParams:
    data = {"seed": seed, "keys": KEYS, "scorer": scorer}
    return parse_section(ScoreLatentsParams, data, where="params")


def cell_parts() -> tuple[str | int, ...]:
    return CellKeys(**KEYS).parts()


def window(
    latent: int,
    index: int,
    token_ids: list[int],
    activations: list[float],
    *,
    pool: str = "score",
) -> dict[str, Any]:
    """Return one row of the table `windows`."""
    active = max(activations) > 0
    return {
        "latent": latent,
        "window": index,
        "pool": pool,
        "active": active,
        "silent_kind": None if active else "random",
        "quantile": 0 if active else None,
        "document": 0 if pool == "explain" else 1,
        "start": index * len(token_ids),
        "token_ids": token_ids,
        "activations": activations,
        "skipped": [False] * len(activations),
        "token_frequencies": [1 / 64] * len(activations),
    }


def explanation(
    latent: int,
    probabilities: dict[int, float],
    base: float,
    pairs: dict[tuple[int, int], float] | None = None,
    text: str = "",
) -> dict[str, Any]:
    """Return one row of the table `explanations`; `pairs` by (previous, token)."""
    pairs = pairs or {}
    return {
        "latent": latent,
        "explanation": text,
        "reason": None,
        "source_latent": latent,
        "model": None,
        "prompt_hash": None,
        "base_probability": base,
        "token_ids": list(probabilities),
        "token_probabilities": list(probabilities.values()),
        "pair_previous_ids": [previous for previous, _ in pairs],
        "pair_token_ids": [token for _, token in pairs],
        "pair_probabilities": list(pairs.values()),
    }


def explained(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=cell_schema("explanations"))


def judged(rows: list[dict[str, Any]], latents: list[int] | None = None) -> Examples:
    wanted = latents if latents is not None else sorted({row["latent"] for row in rows})
    chunks = pa.chunked_array([pa.array(wanted, pa.int64())])
    return examples_of(windows_table(rows), chunks, negatives="random", source="windows.parquet")


def score(
    folder: Path, rows: list[dict[str, Any]], table: pa.Table, name: str = "", **scorer: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the verb; return the rows of predictions and of scores."""
    source = write_windows(folder / f"{name}windows.parquet", rows)
    write_table(folder / f"{name}explanations.parquet", table, cell_schema("explanations"))
    predictions, scores = folder / f"{name}predictions.parquet", folder / f"{name}scores.parquet"
    score_latents(
        score_params(**scorer),
        windows=source,
        explanations=folder / f"{name}explanations.parquet",
        predictions=predictions,
        scores=scores,
    )
    return (
        read_table(predictions, cell_schema("predictions")).to_pylist(),
        read_table(scores, cell_schema("scores")).to_pylist(),
    )


def windows_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=cell_schema("windows"))


def write_windows(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_table(path, rows, cell_schema("windows"))
    return path


def byte_tokenizer(path: Path) -> Path:
    """Write a byte-level BPE of 256 bytes and the merges of a few words, as `tokenizer.json`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat of the house of the union"] * 4, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def planted_cell(
    *,
    n_latents: int,
    n_windows: int,
    window_tokens: int,
    vocab_size: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return windows in which latent i fires exactly on token id i.

    Half of the windows of each pool contain the token once or twice, the others not at all; other
    tokens are uniform over the rest of the vocabulary.
    """
    generator = np.random.default_rng(seed)
    rows, index = [], 0
    for latent in range(n_latents):
        for pool in ("explain", "score"):
            for i in range(n_windows):
                ids = generator.integers(0, vocab_size - 1, window_tokens)
                ids += ids >= latent
                if i % 2:
                    ids[generator.choice(window_tokens, 1 + i % 4 // 3, replace=False)] = latent
                strength = generator.uniform(0.5, 1.5, window_tokens)
                activations = np.where(ids == latent, strength, 0.0)
                rows.append(window(latent, index, ids.tolist(), activations.tolist(), pool=pool))
                index += 1
    return rows
