"""Adding a site must not touch what was captured and trained at the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workflow_study import Study, cell, copy_of

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
NEW = "resid_post.1"
# One more cell per variant; training again at the old site would make two.
ONE_MORE_CELL_EACH = {
    **{"cache_activations": 4, "train_sae": 2, "evaluate_sae": 2, "collect_latents": 2},
    **{"explain_and_score": 2, "match_dictionaries": 1},
    **{"aggregate": 1, "report": 1},
}


def two_sites(config: dict[str, Any]) -> None:
    config["subjects"]["small"]["sites"] = ["resid_post.0", NEW]


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def test_a_new_site_is_one_more_cell_per_variant(study: Study, tmp_path: Path) -> None:
    jobs = copy_of(study, tmp_path / "s", linked=True).configure(two_sites).jobs()
    assert jobs == ONE_MORE_CELL_EACH


def test_a_new_site_does_not_hide_an_edit_of_the_recipe(study: Study, tmp_path: Path) -> None:
    def other_k(config: dict[str, Any]) -> None:
        config["saes"]["topk"]["k"] = 5

    jobs = copy_of(study, tmp_path / "s", linked=True).configure(two_sites, other_k).jobs()
    assert jobs["train_sae"] == 4


def test_a_new_site_is_captured_and_trained_without_touching_the_old_one(
    study: Study, tmp_path: Path
) -> None:
    copied = copy_of(study, tmp_path / "s").configure(two_sites)
    old_shards = copied.folder / cell(paths.SITE, split="sae_train")
    old_sae = copied.folder / cell(paths.SAE)
    before = stamps(old_shards), stamps(old_sae)
    assert len(before[0]) == 4  # two shards, their manifest, and provenance
    new = cell(paths.SAE_CONFIG, site=NEW)
    copied.make(new)
    assert (copied.folder / new).is_file()
    assert (stamps(old_shards), stamps(old_sae)) == before
    keys = cell(paths.MODEL_KEYS) + "/split=sae_train"
    log = copied.folder / paths.LOG.format(rule="cache_activations", keys=keys)
    assert f"captured {NEW}\n" in log.read_text()
    # Dropping it again leaves more captured than requested, which affects no SAE.
    assert copied.configure().jobs() == {}
