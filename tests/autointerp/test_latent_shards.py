"""An SAE's latents explained and judged by several jobs: the same tables as by one job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asked_latents import Rows, asked, judge_of, told
from autointerp_cells import KEYS, explain_params, explained, explanation, write_windows
from scripted_server import ScriptedServer

from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.score import score_latents
from nullsae.autointerp.shards import Ranks, join_shards
from nullsae.config.parse import parse_section
from nullsae.core.errors import UserError
from nullsae.jobs.autointerp import ExplainLatentsParams, ScoreLatentsParams
from nullsae.tables import cell_schema, write_table

SHARDS = ("0:2", "2:4", "4:6")  # of three latents: two, one, none


def explain(
    folder: Path, rows: Rows, tokenizer: Path, server: ScriptedServer, ranks: str | None
) -> Path:
    folder.mkdir(parents=True)
    explainer = {"kind": "openai", **judge_of(server)}
    output = folder / "explanations.parquet"
    explain_latents(
        parse_section(
            ExplainLatentsParams, {"seed": 0, "keys": KEYS, "explainer": explainer}, where="params"
        ),
        write_windows(folder / "windows.parquet", rows),
        tokenizer,
        output,
        None,
        asked(folder),
        Ranks.parse(ranks) if ranks else None,
    )
    return output


def score(
    folder: Path,
    rows: Rows,
    tokenizer: Path,
    server: ScriptedServer,
    ranks: str | None,
    **scorer: Any,
) -> tuple[Path, Path]:
    folder.mkdir(parents=True)
    if scorer["kind"] == "intruder":
        scorer["judge"] = judge_of(server)
    write_table(folder / "told.parquet", told(), cell_schema("explanations"))
    data = {"seed": 0, "keys": KEYS, "scorer": scorer, "judge": judge_of(server)}
    found = (folder / "predictions.parquet", folder / "scores.parquet")
    explanations = None if scorer["kind"] == "intruder" else folder / "told.parquet"
    score_latents(
        parse_section(ScoreLatentsParams, data, where="params"),
        windows=write_windows(folder / "windows.parquet", rows),
        explanations=explanations,
        tokenizer=tokenizer,
        predictions=found[0],
        scores=found[1],
        session=asked(folder),
        ranks=Ranks.parse(ranks) if ranks else None,
    )
    return found


def test_explanations_of_several_jobs_equal_those_of_one(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    whole = explain(tmp_path / "whole", rows, tokenizer_file, server, None)
    parts = [explain(tmp_path / r, rows, tokenizer_file, server, r) for r in SHARDS]
    join_shards(parts[::-1], "explanations", tmp_path / "joined.parquet")
    assert (tmp_path / "joined.parquet").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "scorer",
    [
        {"kind": "detection"},
        {"kind": "fuzzing"},
        {"kind": "fuzzing", "negatives": "misplaced"},
        {"kind": "intruder", "n_tasks": 3, "active_per_task": 4},
    ],
    ids=str,
)
def test_scores_of_several_jobs_equal_those_of_one(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer, scorer: dict[str, Any]
) -> None:
    whole = score(tmp_path / "whole", rows, tokenizer_file, server, None, **scorer)
    parts = [score(tmp_path / r, rows, tokenizer_file, server, r, **scorer) for r in SHARDS]
    for i, table in enumerate(("predictions", "scores")):
        joined = tmp_path / f"{table}.parquet"
        join_shards([part[i] for part in parts[::-1]], table, joined)
        assert joined.read_bytes() == whole[i].read_bytes(), table


def test_a_latent_in_two_shards_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file, latents in zip(files, ((1, 5), (5, 7)), strict=True):
        table = explained(*(explanation(i, {}, 0.0) for i in latents))
        write_table(file, table, cell_schema("explanations"))
    with pytest.raises(UserError, match=r"b\.parquet: latent 5 is in another shard too"):
        join_shards(files, "explanations", tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()
    with pytest.raises(UserError, match=r"none\.parquet: the file is missing"):
        join_shards([tmp_path / "none.parquet"], "explanations", tmp_path / "c.parquet")


@pytest.mark.parametrize("text", ["5:5", "3", "-1:4", "a:b", "4:2"])
def test_invalid_ranks_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--ranks: .* is not FIRST:END"):
        Ranks.parse(text)


def test_explanations_are_not_swapped_within_a_shard(tmp_path: Path, tokenizer_file: Path) -> None:
    base = tmp_path / "base.parquet"
    write_table(base, told(), cell_schema("explanations"))
    with pytest.raises(UserError, match="--ranks: an explainer of kind swapped"):
        explain_latents(
            explain_params(kind="swapped", of="gpt"),
            tmp_path / "windows.parquet",
            tokenizer_file,
            tmp_path / "out.parquet",
            base,
            ranks=Ranks(0, 2),
        )
