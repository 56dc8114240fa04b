"""Null dictionaries from `evaluation.null_dictionaries`, by the jobs of a small study."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from workflow_study import Study, cell, copy_of

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
# All as active as the SAE on any text: so few documents differ too much for matched firing rates.
NULLS = ("rotated", "rotated_whitened", "pca", "identity")
COLLECTED = (paths.LATENTS, paths.WINDOWS, paths.COVERAGE, paths.FIRINGS)
END = {"explain_and_score": 1, "aggregate": 1, "report": 1}


def with_nulls(config: dict[str, Any]) -> None:
    config["activations"]["shared_pass"] = "model"
    config["evaluation"]["null_dictionaries"] = [*NULLS]


def test_nulls_of_a_finished_study_get_verdicts_and_leave_its_latents_as_they_are(
    study: Study, tmp_path: Path
) -> None:
    copied = copy_of(study, tmp_path / "s").configure(with_nulls)
    before = {pattern: (study.folder / cell(pattern)).read_bytes() for pattern in COLLECTED}
    jobs = copied.jobs()
    trained = {name: n for name, n in jobs.items() if name.startswith("train_saes_")}
    assert [*trained.values()] == [1], "principal components and neurons, in one job"
    assert {name: n for name, n in jobs.items() if name not in trained} == {
        **{"derive_sae": 2, "evaluate_sae": 1, "collect_latents": 2},
        **{**END, "explain_and_score": 2},
    }
    copied.make(gpu=2)
    assert copied.jobs() == {}
    assert before == {p: (copied.folder / cell(p)).read_bytes() for p in COLLECTED}

    verdicts = pd.read_parquet(copied.folder / paths.TABLE.format(table="verdicts"))
    found = verdicts[verdicts.stage == "dictionary"]
    assert {*found.null} == {f"topk.{null}" for null in NULLS}
    assert {*found.real} == {"topk"}
    assert {"auroc", "next_token_auroc", "explained_variance"} <= {*found.metric}
    # Null dictionaries exist only for trained, so they say nothing about models.
    assert {*verdicts[verdicts.stage == "model"].sae} == {"topk"}
    assert "Within trained" in (copied.folder / paths.ANSWER).read_text(encoding="utf-8")

    # Latents of one SAE are not collected again when others are added.
    shutil.rmtree((copied.folder / cell(paths.LATENTS, sae="topk.pca")).parent)
    assert copied.jobs(cell(paths.LATENTS, sae="topk.pca")) == {"collect_latents": 1}
    copied.make(cell(paths.LATENTS, sae="topk.pca"))
    log = copied.folder / "results/logs/collect_latents/subject=small/variant=trained/draw=0.log"
    assert log.read_text().count("made before, its files are copied") == 5
