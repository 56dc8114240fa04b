"""Scores made elsewhere go through a study, with placebos on their windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from workflow_study import Study, cell, copy_of

from nullsae import paths
from nullsae.tables import SCHEMAS, cell_schema, read_table

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
RUN = "small_{variant}_{draw}_{sae}_{seed}"
SOURCE = "0-{variant}-{draw}-{sae}-{seed}-resid_post_0"
SECRET = "<script>alert(1)</script>\u202e"


def with_theirs(config: dict[str, Any]) -> None:
    delphi = {"kind": "import", "path": f"delphi/{RUN}", "source": "{site}"}
    neuronpedia = {"kind": "import", "path": f"np/small/{SOURCE}", "cells": {"variant": "trained"}}
    config["report"]["n_example_latents"] = 4
    config["explainers"] |= {"delphi": delphi, "np": neuronpedia}
    config["scorers"] |= {
        "theirs": {**delphi, "of": "delphi", "scores": "detection"},
        "np_detection": {**neuronpedia, "of": "np", "scores": "detection"},
    }


@pytest.fixture(scope="module")
def imported(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with its own lexical explanations, exported and imported."""
    copied = copy_of(study, tmp_path_factory.mktemp("imported") / "study")
    latents = [cell(paths.LATENT_FOLDER, variant=v) for v in ("trained", "rerandomized")]
    named = [f"--latents={folder}" for folder in latents]
    for layout, output in (("delphi", "delphi"), ("neuronpedia", "np")):
        asked = [f"--layout={layout}", f"--output={output}", "--explainer=lexical"]
        said = copied.run(["nullsae", "export", "latents", *named, *asked])
        assert said.returncode == 0, said.stdout
    text_of(copied).write_text(json.dumps(SECRET))
    copied.configure(with_theirs).make(gpu=2)
    return copied


def text_of(study: Study) -> Path:
    """Return the file of an explanation of the trained cell."""
    run = RUN.format(variant="trained", draw=0, sae="topk", seed=0)
    return sorted((study.folder / "delphi" / run / "explanations").iterdir())[0]


def rows(study: Study, table: str, pattern: str, **keys: str) -> list[dict[str, Any]]:
    file = study.folder / cell(pattern, **keys)
    found: list[dict[str, Any]] = read_table(file, cell_schema(table)).to_pylist()
    return found


@pytest.mark.parametrize("variant", ["trained", "rerandomized"])
def test_what_was_exported_comes_back_with_the_same_scores(imported: Study, variant: str) -> None:
    own = rows(imported, "scores", paths.SCORES, variant=variant)
    pairs = [("delphi", "theirs"), ("np", "np_detection")]
    for explainer, scorer in pairs[: 2 if variant == "trained" else 1]:
        keys = {"variant": variant, "explainer": explainer, "scorer": scorer}
        found = rows(imported, "scores", paths.SCORES, **keys)
        assert [one["auroc"] for one in found] == [one["auroc"] for one in own]
        again = rows(imported, "scores", paths.SCORES, **{**keys, "explainer": "lexical"})
        # By the formula, on the windows of the file, whose tokens are texts.
        assert [one["auroc"] for one in again] == pytest.approx([o["auroc"] for o in own], abs=0.1)
    texts = rows(imported, "explanations", paths.EXPLANATIONS, variant=variant)
    back = rows(imported, "explanations", paths.EXPLANATIONS, variant=variant, explainer="delphi")
    pairs_of = zip(texts, back, strict=True)
    assert [o["explanation"] == b["explanation"] for o, b in pairs_of].count(False) == (
        variant == "trained"
    )


def test_a_cell_without_a_file_says_so(imported: Study) -> None:
    keys = {"variant": "rerandomized", "explainer": "np"}
    found = rows(imported, "explanations", paths.EXPLANATIONS, **keys)
    assert {one["explanation"] for one in found} == {None}
    assert all(one["reason"].endswith("is not about this SAE") for one in found)


def test_the_study_ends_in_verdicts_and_a_page(imported: Study) -> None:
    file = imported.folder / paths.TABLE.format(table="verdicts")
    verdicts = read_table(file, SCHEMAS["verdicts"]).to_pylist()
    judged = {(v["explainer"], v["scorer"]) for v in verdicts if v["metric"] == "auroc"}
    assert {("delphi", "theirs"), ("lexical", "theirs"), ("swapped", "theirs")} <= judged
    assert ("delphi", "detection") not in judged
    page = (imported.folder / paths.REPORT).read_text()
    assert "read from delphi/" in page
    # The browser of latents has it as JSON.
    assert r"\u003cscript\u003ealert(1)" in page
    assert "<script>alert" not in page
    assert "\u202e" not in page


def test_an_edit_of_a_file_runs_what_depends_on_it_and_no_more(imported: Study) -> None:
    assert imported.jobs() == {}
    text_of(imported).touch()
    assert imported.jobs() == {}
    text_of(imported).write_text('"another text"')
    assert imported.jobs() == {"explain_and_score": 1, "aggregate": 1, "report": 1}


def test_one_file_for_two_cells_is_refused_before_anything_runs(
    imported: Study, tmp_path: Path
) -> None:
    def shared(config: dict[str, Any]) -> None:
        with_theirs(config)
        config["saes"]["topk"]["seeds"] = [0, 1]
        config["explainers"]["delphi"]["path"] = "delphi/small_trained_0_topk_0"

    copied = copy_of(imported, tmp_path / "study", linked=True).configure(shared)
    said = copied.snakemake("--dry-run").stdout
    assert (
        "explainers.delphi.path: 'delphi/small_trained_0_topk_0' is the same file for seed 0"
        in said
    )
    assert "put {seed} into it" in said
