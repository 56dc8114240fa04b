"""A study is kept and extended across code changes that its owner accepts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from workflow_study import Study, cell, copy_of, replace

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
VERDICTS = paths.TABLE.format(table="verdicts")
LINE = "code of {} changed since results/ was made: "


def edit(study: Study, *modules: str) -> None:
    """Add a line to modules of the study's own copy of the sources."""
    for module in modules:
        file = study.tree / "src/nullsae" / module
        replace(file, file.read_text(encoding="utf-8") + "EDITED = 1\n")


def unjudged(config: dict[str, Any]) -> None:
    """No explainers or scorers: the fewest jobs that tables need."""
    config["explainers"], config["scorers"] = {}, {}


def another_seed(config: dict[str, Any]) -> None:
    unjudged(config)
    config["saes"]["topk"]["seeds"] = [0, 1]


def another_k(config: dict[str, Any]) -> None:
    another_seed(config)
    config["saes"]["topk"]["k"] = 5


def shared_pass(config: dict[str, Any]) -> None:
    config["activations"]["shared_pass"] = True


@pytest.fixture
def upgraded(study: Study, tmp_path: Path) -> Study:
    """A finished study, moved, whose capture and training code was edited since."""
    tree = tmp_path / "tree"
    shutil.copytree(study.tree, tree, ignore=shutil.ignore_patterns("__pycache__"))
    found = copy_of(study, tmp_path / "study", tree=tree).configure(unjudged)
    edit(found, "activations/store.py", "sae/trainer.py")
    return found


def accept(study: Study, *arguments: str) -> str:
    done = study.run(["nullsae", "accept", *arguments])
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_an_accepted_upgrade_reruns_nothing_and_new_cells_fit_what_was_made(
    upgraded: Study,
) -> None:
    before = upgraded.make(VERDICTS, "--dry-run")
    line = next(text for text in before.splitlines() if text.startswith(LINE[:8]))
    assert line.startswith(LINE.format("cache_activations, train_sae"))
    command = f"`nullsae accept cache_activations train_sae --root {upgraded.folder}`"
    assert command in line

    refused = upgraded.run(["nullsae", "accept", "train_sae", "cache_activations"])
    assert refused.returncode == 2
    assert "give --yes" in refused.stdout
    assert not (upgraded.folder / paths.ACCEPTED).exists()
    told = accept(upgraded, "train_sae", "cache_activations", "--yes")
    assert "files: sae/trainer.py (changed)" in told
    assert "files: activations/store.py (changed)" in told
    assert "kept: 2 jobs, 6 files: subject=small/variant=trained/draw=0/site=resid_post.0" in told

    after = upgraded.make(VERDICTS, "--dry-run")
    assert LINE[:8] not in after
    # Without explainers the study has other tables, but that is not a code change.
    assert upgraded.jobs(VERDICTS) == {"aggregate": 1}
    none = upgraded.run(["nullsae", "accept", "--all", "--yes"])
    assert none.returncode == 2
    assert "nothing to accept" in none.stdout.splitlines()[-1]

    sae = upgraded.folder / cell(paths.SAE_WEIGHTS)
    manifest = upgraded.folder / cell(paths.ACTIVATIONS_MANIFEST, split="sae_train")
    kept = [(file.stat().st_mtime_ns, file.read_bytes()) for file in (sae, manifest)]
    upgraded.configure(another_seed)
    measured = {"evaluate_sae": 2, "collect_latents": 2, "match_dictionaries": 1, "aggregate": 1}
    assert upgraded.jobs(VERDICTS) == {"train_sae": 2, **measured}
    upgraded.make(VERDICTS, gpu=2)
    assert kept == [(file.stat().st_mtime_ns, file.read_bytes()) for file in (sae, manifest)]

    acceptance = json.loads((upgraded.folder / paths.ACCEPTED).read_text())["acceptances"][0]
    old = {code["rule"]: code["accepted"] for code in acceptance["codes"]}
    notes = {row["accepted"] for row in pq.read_table(upgraded.folder / VERDICTS).to_pylist()}
    assert notes == {"; ".join(f"{rule} accepted from {code}" for rule, code in old.items())}

    # A further upgrade: some SAEs were made by the first code, some by the second.
    edit(upgraded, "sae/trainer.py")
    assert set(upgraded.jobs(VERDICTS)) == {"train_sae", *measured}
    told = accept(upgraded, "--all", "--yes")
    assert told.count("train_sae: code ") == 2
    assert upgraded.jobs(VERDICTS) == {}
    # An edit of the config is not one of the code.
    assert set(upgraded.configure(another_k).jobs(VERDICTS)) == {"train_sae", *measured}


def test_what_cannot_be_accepted_gets_one_line(study: Study, tmp_path: Path) -> None:
    for folder, arguments, said in (
        (study.folder, ("--all",), "nothing to accept: results/ was made by the current"),
        (
            study.folder,
            ("train_saes",),
            "'train_saes' is not one of the rules: cache_activations, ",
        ),
        (study.folder, (), "give the rules whose code to accept, or --all"),
        (tmp_path, ("train_sae",), "no results here; --root names the study's folder"),
    ):
        done = study.run(["nullsae", "accept", *arguments, "--yes", "--root", str(folder)])
        assert done.returncode == 2
        assert len(done.stdout.splitlines()) == 1
        assert said in done.stdout
    assert not (study.folder / paths.ACCEPTED).exists()


def test_saes_of_one_pass_are_accepted_one_by_one(study: Study, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(study.tree, tree, ignore=shutil.ignore_patterns("__pycache__"))
    upgraded = copy_of(study, tmp_path / "study", tree=tree).configure(shared_pass)
    edit(upgraded, "sae/trainer.py")
    target = cell(paths.RECONSTRUCTION)
    before = upgraded.make(target, "--dry-run")
    assert LINE.format("train_sae") + "2 jobs run again" in before
    assert "kept: 2 jobs, 6 files: " in accept(upgraded, "train_sae", "--yes")
    assert upgraded.jobs(target) == {}
    new = cell(paths.SAE_CONFIG, seed="1")
    more = upgraded.configure(shared_pass, another_seed)
    assert list(more.jobs(new).values()) == [1]
