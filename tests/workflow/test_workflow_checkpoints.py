"""Metrics during training: checkpoints of SAEs go through all later stages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from workflow_study import Study, cell, copy_of, table

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
SHARE = 0.25
AT = "topk@0.25"


def along(config: dict[str, Any]) -> None:
    config["saes"]["topk"]["checkpoints"] = [SHARE]


@pytest.fixture(scope="module")
def looked_at(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with one checkpoint."""
    copied = copy_of(study, tmp_path_factory.mktemp("along") / "study")
    copied.configure(along).make(gpu=2)
    return copied


def test_a_checkpoint_goes_through_the_jobs_of_all_later_stages(
    study: Study, tmp_path: Path
) -> None:
    copied = copy_of(study, tmp_path / "s", linked=True).configure(along)
    # The two SAEs are trained again, and then there are two more; nothing is captured.
    assert copied.jobs() == {
        **{"train_sae": 2, "take_checkpoint": 2, "evaluate_sae": 2, "collect_latents": 4},
        **{"explain_and_score": 2, "match_dictionaries": 1},
        **{"aggregate": 1, "report": 1},
    }


def test_no_table_misses_the_sae_along_its_training(looked_at: Study) -> None:
    for name in ("reconstruction", "documents", "latents", "coverage", "history", "summaries"):
        assert list(table(looked_at, name).sae.unique()) == [AT, "topk"], name
    rows = table(looked_at, "reconstruction").set_index(["variant", "sae"])
    along, whole = rows.loc[("trained", AT)], rows.loc[("trained", "topk")]
    assert whole.explained_variance > along.explained_variance + 0.01
    assert whole.n_latents == along.n_latents
    history = table(looked_at, "history").groupby("sae").tokens.max()
    assert history[AT] == SHARE * history["topk"]


def test_the_whole_sae_its_contrasts_and_its_verdicts_stay_the_same(
    study: Study, looked_at: Study
) -> None:
    weights = cell(paths.SAE_WEIGHTS)
    assert (study.folder / weights).read_bytes() == (looked_at.folder / weights).read_bytes()
    for name in ("contrasts", "verdicts"):
        path = paths.TABLE.format(table=name)
        assert (study.folder / path).read_bytes() == (looked_at.folder / path).read_bytes()


def test_the_figure_is_made(study: Study, looked_at: Study) -> None:
    file = paths.FIGURE.format(figure="small.training", format="svg")
    assert (looked_at.folder / file).read_bytes().startswith(b"<svg")
    assert not (study.folder / file).exists()
    page = (looked_at.folder / paths.REPORT).read_text(encoding="utf-8")
    assert 'id="small.training"' in page


def test_a_second_run_has_nothing_to_do(looked_at: Study) -> None:
    assert "Nothing to be done" in looked_at.make()


def test_a_lost_checkpoint_is_told_with_the_command_that_brings_it_back(
    looked_at: Study, tmp_path: Path
) -> None:
    copied = copy_of(looked_at, tmp_path / "s")
    whole, taken = cell(paths.SAE_CONFIG), cell(paths.SAE_CONFIG, sae=AT)
    shutil.rmtree(copied.folder / cell(paths.SAE) / "checkpoints")
    shutil.rmtree((copied.folder / taken).parent)
    assert copied.snakemake(taken).returncode != 0
    log = paths.LOG.format(rule="take_checkpoint", keys=cell(paths.CELL_KEYS, sae=AT))
    *_, line = (copied.folder / log).read_text().splitlines()
    assert line.startswith("nullsae take_checkpoint: error: ")
    command = line.partition("rebuild it with: ")[2]
    assert command.startswith("snakemake --cores all --resources gpu=1 -s ")
    assert command.endswith(f" --forcerun {whole} -- {whole}")
    copied.make(whole, "--forcerun", whole)
    copied.make(taken)
    weights = cell(paths.SAE_WEIGHTS, sae=AT)
    assert (copied.folder / weights).read_bytes() == (looked_at.folder / weights).read_bytes()
