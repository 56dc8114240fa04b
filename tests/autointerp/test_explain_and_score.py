"""All jobs without an endpoint in one, and placebos made by their judge: the same tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asked_latents import Rows, asked, judge_of, told
from autointerp_cells import KEYS, write_windows
from scripted_server import ScriptedServer

from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.explain_and_score import explain_and_score
from nullsae.autointerp.score import score_latents
from nullsae.autointerp.shards import Ranks, join_shards
from nullsae.config.parse import parse_section
from nullsae.core.errors import UserError
from nullsae.jobs.autointerp import (
    ExplainAndScoreParams,
    ExplainLatentsParams,
    ScoreLatentsParams,
)
from nullsae.tables import cell_schema, read_table, write_table

CELLS = [{"site": "resid_post.1", "sae": "topk", "seed": seed} for seed in (0, 1)]
MODEL = {name: KEYS[name] for name in ("subject", "variant", "draw")}
EXPLAINERS: dict[str, Any] = {
    "lexical": {"kind": "lexical"},
    "pairs": {"kind": "lexical", "context": "bigram"},
    "swapped": {"kind": "swapped", "of": "lexical"},
}
SCORERS: dict[str, Any] = {
    "detection": {"kind": "detection"},
    "fuzzing": {"kind": "fuzzing", "mark_threshold": 0.5},
}
PAIRS = [(explainer, scorer) for explainer in EXPLAINERS for scorer in SCORERS]
PLACE = "{site}/{sae}/{seed}"


def shared(folder: Path, rows: Rows, tokenizer: Path, **changes: Any) -> Path:
    """Return a folder with the output of one job, for two SAEs."""
    for cell in CELLS:
        write_windows(folder / PLACE.format(**cell) / "windows.parquet", rows)
    data: dict[str, Any] = {
        **{"seed": 3, "keys": MODEL, "cells": CELLS, "explainers": EXPLAINERS},
        "scorers": [{"explainer": e, "name": s, "scorer": SCORERS[s]} for e, s in PAIRS],
    }
    explain_and_score(
        parse_section(ExplainAndScoreParams, {**data, **changes}, where="params"),
        windows=f"{folder}/{PLACE}/windows.parquet",
        tokenizer=tokenizer,
        explanations=f"{folder}/{PLACE}/{{explainer}}/explanations.parquet",
        scores=f"{folder}/{PLACE}/{{explainer}}/{{scorer}}",
    )
    return folder


def alone(folder: Path, rows: Rows, tokenizer: Path) -> Path:
    """Return a folder with the same output, from one job per table."""
    for cell in CELLS:
        place = folder / PLACE.format(**cell)
        windows = write_windows(place / "windows.parquet", rows)
        own = {"seed": 3, "keys": {**MODEL, **cell}}
        for name, explainer in EXPLAINERS.items():
            base = explainer.get("of")
            explain_latents(
                parse_section(
                    ExplainLatentsParams, {**own, "explainer": explainer}, where="params"
                ),
                windows,
                tokenizer,
                place / name / "explanations.parquet",
                base and place / base / "explanations.parquet",
            )
        for name, scorer in PAIRS:
            score_latents(
                parse_section(
                    ScoreLatentsParams, {**own, "scorer": SCORERS[scorer]}, where="params"
                ),
                windows=windows,
                explanations=place / name / "explanations.parquet",
                tokenizer=tokenizer,
                predictions=place / name / scorer / "predictions.parquet",
                scores=place / name / scorer / "scores.parquet",
            )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.parquet")}


def test_one_job_writes_the_same_bytes_as_one_job_per_table(
    tmp_path: Path, rows: Rows, tokenizer_file: Path
) -> None:
    found = contents(shared(tmp_path / "shared", rows, tokenizer_file))
    assert len(found) == len(CELLS) * (1 + len(EXPLAINERS) + 2 * len(PAIRS))
    assert found == contents(alone(tmp_path / "alone", rows, tokenizer_file))
    # The placebo is drawn separately for each SAE.
    placebos = [
        read_table(
            tmp_path / "shared" / PLACE.format(**cell) / "swapped/explanations.parquet",
            cell_schema("explanations"),
        )["source_latent"].to_pylist()
        for cell in CELLS
    ]
    assert all(sorted(placebo) == [0, 1, 2] for placebo in placebos)


def test_explanations_of_a_language_model_are_exchanged_in_place(
    tmp_path: Path, rows: Rows, tokenizer_file: Path
) -> None:
    folder = tmp_path / "study"
    for cell in CELLS:
        file = folder / PLACE.format(**cell) / "gpt/explanations.parquet"
        write_table(file, told(), cell_schema("explanations"))
    placebo = {"gpt_swapped": {"kind": "swapped", "of": "gpt"}}
    shared(folder, rows, tokenizer_file, explainers=placebo, scorers=[])
    for cell in CELLS:
        place = folder / PLACE.format(**cell)
        found = read_table(place / "gpt_swapped/explanations.parquet", cell_schema("explanations"))
        texts = told()["explanation"].to_pylist()
        assert sorted(found["explanation"].to_pylist()) == sorted(texts)
        assert found["explanation"].to_pylist() != texts


def test_a_job_names_missing_windows(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"resid_post\.1/topk/7/windows\.parquet"):
        shared(tmp_path / "none", [], tokenizer_file, cells=[{**CELLS[0], "seed": 7}, *CELLS])


# A job with a judge makes the explanations that need none


def judged(
    folder: Path,
    rows: Rows,
    tokenizer: Path,
    server: ScriptedServer,
    *,
    made_by_judge: bool,
    ranks: str | None = None,
    **scorer: Any,
) -> tuple[bytes, bytes]:
    """Return predictions and scores of a placebo, which the job makes or reads."""
    folder.mkdir(parents=True)
    windows = write_windows(folder / "windows.parquet", rows)
    explanations = folder / "explanations.parquet"
    write_table(explanations, told(), cell_schema("explanations"))
    own = {"seed": 0, "keys": KEYS}
    placebo = {"kind": "swapped", "of": "gpt"}
    if not made_by_judge:
        params = parse_section(ExplainLatentsParams, {**own, "explainer": placebo}, where="params")
        output = folder / "swapped.parquet"
        explain_latents(params, windows, tokenizer, output, explanations)
        explanations = output
    data = {**own, "scorer": scorer, "judge": judge_of(server)}
    if made_by_judge:
        data["explainers"] = [placebo]
    found = (folder / "predictions.parquet", folder / "scores.parquet")
    score_latents(
        parse_section(ScoreLatentsParams, data, where="params"),
        windows=windows,
        explanations=explanations,
        tokenizer=tokenizer,
        predictions=found[0],
        scores=found[1],
        session=asked(folder),
        ranks=Ranks.parse(ranks) if ranks else None,
    )
    return found[0].read_bytes(), found[1].read_bytes()


@pytest.mark.parametrize(
    "scorer",
    [
        {"kind": "detection"},
        {"kind": "fuzzing"},
        {"kind": "fuzzing", "negatives": "misplaced"},
    ],
    ids=str,
)
def test_a_placebo_made_by_its_judge_scores_as_one_from_a_file(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer, scorer: dict[str, Any]
) -> None:
    read, made = (
        judged(tmp_path / str(by), rows, tokenizer_file, server, made_by_judge=by, **scorer)
        for by in (False, True)
    )
    assert made == read


def test_a_placebo_is_exchanged_among_all_latents_in_each_of_several_jobs(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    given: dict[str, Any] = {"made_by_judge": True, "kind": "detection"}
    whole = judged(tmp_path / "whole", rows, tokenizer_file, server, **given)
    for ranks in ("0:2", "2:4"):
        judged(tmp_path / ranks, rows, tokenizer_file, server, ranks=ranks, **given)
    for i, table in enumerate(("predictions", "scores")):
        joined = tmp_path / f"{table}.parquet"
        join_shards([tmp_path / r / f"{table}.parquet" for r in ("0:2", "2:4")], table, joined)
        assert joined.read_bytes() == whole[i], table
