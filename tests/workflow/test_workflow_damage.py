from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workflow_study import Study, cell, copy_of

from nullsae import paths
from nullsae.core.files import checksum

pytestmark = pytest.mark.workflow


def flip(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])


def other_k(config: dict[str, Any]) -> None:
    config["saes"]["topk"]["k"] = 5


@pytest.mark.parametrize(
    "damage",
    [flip, pytest.param(truncate, marks=pytest.mark.slow), Path.unlink],
    ids=["flip", "cut", "delete"],
)
def test_a_damaged_shard_is_named_and_the_command_shown_repairs_it(
    study: Study, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    copied = copy_of(study, tmp_path / "s")
    options: list[str] = []
    if damage is Path.unlink:
        overlay = copied.folder / "my overlay.yaml"
        overlay.write_text("saes: {topk: {k: 6}}", encoding="utf-8")
        options = ["--configfile", str(overlay), "--config", "report={title: Mine}"]
    else:
        copied.configure(other_k)
    split = {"sae_train": "shard-00001.safetensors", "eval": "shard-00000.safetensors"}
    name = "eval" if damage is truncate else "sae_train"
    relative = f"{cell(paths.SITE, split=name)}/{split[name]}"
    shard = copied.folder / relative
    before = checksum(shard)
    damage(shard)

    target = cell(paths.SAE_CONFIG)
    failed = copied.snakemake(target, *options)
    assert failed.returncode != 0
    errors = re.findall(r"^nullsae train_sae: error: (.*)$", failed.stdout, re.M)
    # Snakemake shows the log of the failed job, which must be one line, not a traceback.
    assert errors, failed.stdout[-3000:]
    assert len(set(errors)) == 1
    assert "Traceback" not in failed.stdout
    assert errors[0].startswith(f"{relative}: ")
    assert ("missing" if damage is Path.unlink else "damaged") in errors[0]
    assert not (copied.folder / target).exists()

    # Unchanged, from the folder in which the run was started.
    command = shlex.split(errors[0].partition("rebuild it with: ")[2])
    assert command[0] == "snakemake"
    assert ("--config" in command) is bool(options)
    repaired = copied.run(command)
    assert repaired.returncode == 0, repaired.stdout[-3000:]
    assert checksum(shard) == before

    copied.make(target, *options)
    made = json.loads((copied.folder / target).read_text(encoding="utf-8"))
    assert made["training"]["k"] == (6 if options else 5)
