"""`nullsae prune`: what an edit of the config left over is deleted, all else stays."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from workflow_study import Study, cell, copy_of

from nullsae import paths

pytestmark = pytest.mark.workflow


def fewer(config: dict[str, Any]) -> None:
    """Drop one variant, one explainer and one scorer."""
    config["variants"] = ["trained"]
    del config["explainers"]["swapped"], config["scorers"]["fuzzing"]


def files(study: Study) -> dict[str, bytes]:
    results = study.folder / "results"
    return {
        str(file.relative_to(study.folder)): file.read_bytes()
        for file in sorted(results.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def prune(study: Study, *options: str, rc: int = 0) -> str:
    done = study.run(["nullsae", "prune", *options])
    assert done.returncode == rc, done.stdout
    return done.stdout


def another_sae(study: Study) -> list[str]:
    """The files of a second SAE, as if it had been dropped from the config."""
    made = []
    for file in files(study):
        if "sae=topk/" in file and "/variant=trained/" in file:
            new = Path(study.folder, file.replace("sae=topk", "sae=wide"))
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(study.folder / file, new)
            made.append(str(new.relative_to(study.folder)))
    return made


@pytest.mark.slow
def test_what_was_dropped_from_the_config_goes_and_nothing_else(
    study: Study, tmp_path: Path
) -> None:
    copied = copy_of(study, tmp_path / "study")
    complete = prune(copied)
    assert "0 B (0 files) are left over" in complete
    assert "not ours" not in complete
    assert "The last run" not in complete
    copied.configure(fewer)
    # The config was edited but not run yet: the listing says so.
    dropped = "variants rerandomized, explainers swapped, scorers fuzzing"
    assert f"The last run here also had {dropped}: is a --configfile missing?" in prune(copied)
    copied.make()
    before, wide = files(copied), another_sae(copied)
    assert len(wide) > 12
    own = {
        "results/notes.txt": b"mine",
        "results/saes/plot.png": b"mine",
        cell("results/models/subject=small/variant=rerandomized/draw=0/my_probe.py"): b"mine",
    }
    for path, content in own.items():
        (copied.folder / path).write_bytes(content)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "shard-00000.safetensors").write_bytes(b"outside")
    link = copied.folder / "results/activations/subject=small/variant=rerandomized/draw=1"
    os.symlink(outside, link)

    listed = prune(copied)
    for line in ("results/saes", "sae=wide/", "results/activations", "Nothing was deleted"):
        assert line in listed
    assert "variant=rerandomized/" in listed
    assert f"a link, not followed: {link.relative_to(copied.folder)}" in listed
    for path in own:
        foreign = listed.split("not written by nullsae, and left alone")[1]
        assert path.removeprefix("results/") in foreign
    assert files(copied).keys() == before.keys() | {*wide} | own.keys()

    lock = copied.folder / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("results/x\n")
    refused = prune(copied, "--yes", rc=2)
    assert refused.count("\n") == 1
    assert "Snakemake is running here, so nothing was deleted" in refused
    unlocked = copied.run(shlex.split(refused.split("`")[1]))
    assert unlocked.returncode == 0, unlocked.stdout
    assert not lock.exists()

    prune(copied, "--yes")
    after = files(copied)
    left = ("variant=rerandomized", "explainer=swapped", "scorer=fuzzing", "sae=wide")
    # A single variant cannot be compared.
    compared = ("results/overlap/", "results/figures/small.discrimination.svg")
    kept = {
        file: content
        for file, content in before.items()
        if not file.startswith(compared) and not any(name in file for name in left)
    }
    assert {file: after[file] for file in kept} == kept
    assert after.keys() == kept.keys() | own.keys()
    assert (outside / "shard-00000.safetensors").read_bytes() == b"outside"
    assert link.is_symlink()
    assert copied.jobs() == {}
    assert "0 B (0 files) are left over" in prune(copied)


def test_a_variant_without_weights_waits_for_the_trained_ones(study: Study, tmp_path: Path) -> None:
    """Its own recipe exists, but the weights that it runs on do not."""
    noisy = lambda config: config.update(variants=["trained", "noise_embeddings"])  # noqa: E731
    copied = copy_of(study, tmp_path / "study").configure(noisy)
    recipe = cell(paths.RECIPE, variant="noise_embeddings")
    copied.make(recipe)
    folder = (copied.folder / recipe).parent
    assert not [*folder.glob("*.safetensors")]
    assert (folder / "tokenizer.json").read_bytes() == (
        copied.folder / cell(paths.RECIPE)
    ).with_name("tokenizer.json").read_bytes()
    captured = cell(paths.ACTIVATIONS_MANIFEST, variant="noise_embeddings", split="eval")
    assert copied.jobs(captured) == {"cache_activations": 1}
    shutil.rmtree(copied.folder / "results/models/subject=small/variant=trained")
    assert copied.jobs(captured) == {
        **{"train_subject": 1, "randomize_model": 1, "cache_activations": 1},
    }
