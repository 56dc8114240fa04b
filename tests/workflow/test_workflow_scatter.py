"""Work split into more jobs gives the same results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer
from workflow_study import Study, cell, copy_of

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
N_CELLS = 2  # variants


def with_model(server: ScriptedServer, **sections: dict[str, Any]) -> Any:
    def edit(config: dict[str, Any]) -> None:
        own = {"kind": "openai", "model": "m", "base_url": server.url, "api_key_env": None}
        config["explainers"] |= {"gpt": own, "gpt_swapped": {"kind": "swapped", "of": "gpt"}}
        for name, values in sections.items():
            config[name] = config.get(name, {}) | values

    return edit


def bytes_of(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for pattern in patterns
        for file in folder.glob(pattern)
        if not file.name.startswith("portion-") and file.is_file()
    }


def test_a_capture_in_portions_equals_one_of_a_piece(study: Study, tmp_path: Path) -> None:
    copy = copy_of(study, tmp_path / "study")
    copy.configure(lambda config: config["activations"].update(chunks=3))
    assert copy.jobs() == {}
    before = bytes_of(copy.folder, "results/activations/**/*", "results/tables/*")
    shutil.rmtree(copy.folder / "results" / "activations")
    split = cell(paths.ACTIVATIONS_MANIFEST, split="eval")
    assert copy.jobs(split) == {"capture_portion": 3, "cache_activations": 1}
    jobs = copy.jobs()
    assert jobs["capture_portion"] == 3 * jobs["cache_activations"] == 3 * 2 * N_CELLS
    copy.make()
    assert bytes_of(copy.folder, "results/activations/**/*", "results/tables/*") == before
    assert copy.jobs() == {}


def test_latents_in_several_jobs_get_the_same_explanations_and_scores(
    study: Study, tmp_path: Path
) -> None:
    """Four latents, three in a job."""
    with ScriptedServer(answers="judge_answers:plausible") as server:
        copy = copy_of(study, tmp_path / "study").configure(with_model(server))
        copy.make()
        tables = "results/tables/*.parquet"
        before = bytes_of(copy.folder, tables)
        copy.configure(with_model(server, autointerp={"latents_per_job": 3}))
        assert copy.jobs() == {
            "explain_shard": 2 * N_CELLS,
            "explain_latents": N_CELLS,
            "explain_and_score": N_CELLS,  # the exchanged ones
            "score_shard": 2 * 2 * 2 * N_CELLS,
            "score_latents": 2 * 2 * N_CELLS,
            "aggregate": 1,
            "report": 1,
        }
        server.reset()
        copy.make()
        assert server.stats()["requests"] == 0  # all replies were kept
        assert bytes_of(copy.folder, tables) == before
        assert copy.jobs() == {}
