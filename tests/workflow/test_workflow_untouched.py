"""Looking at a study changes no byte below `results`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml
from workflow_study import Study, copy_of, edited

from nullsae import paths

LOOKS = {
    "dry run": ("--dry-run",),
    "lint": ("--lint",),
    "summary": ("--summary",),
    "dag": ("--dag",),
    "rules": ("--list-rules",),
    "unlock": ("--unlock",),
}


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.slow
def test_looking_at_a_study_by_any_config_changes_no_byte(study: Study, tmp_path: Path) -> None:
    copied = copy_of(study, tmp_path / "s")
    other = copied.folder / "other.yaml"
    config = edited(lambda c: c.update(seed=1, variants=["trained", "step0"]))
    other.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    before = content(copied.folder / "results")
    assert paths.RUN_CONFIG.removeprefix("results/") in before
    for name, arguments in LOOKS.items():
        for configs in ((), ("--configfile", str(other))):
            copied.snakemake(*arguments, *configs)
            assert content(copied.folder / "results") == before, (name, configs)


def test_a_run_refused_by_the_lock_changes_no_byte(study: Study, tmp_path: Path) -> None:
    copied = copy_of(study, tmp_path / "s")
    other = copied.folder / "other.yaml"
    config = edited(lambda c: c.update(variants=["trained", "step0"]))
    other.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    before = content(copied.folder / "results")
    # Snakemake's record of the files that it is about to write.
    for kind in ("input", "output"):
        lock = copied.folder / f".snakemake/locks/0.{kind}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text(f"{paths.TABLE.format(table='models')}\n", encoding="utf-8")
    refused = copied.snakemake("--configfile", str(other))
    assert refused.returncode != 0
    assert "cannot be locked" in refused.stdout
    assert content(copied.folder / "results") == before
