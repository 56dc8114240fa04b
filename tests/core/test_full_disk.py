"""Writers on a real file system that is full."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from nullsae import tables
from nullsae.config.saes import Sae
from nullsae.core.checkpoint import save_state
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.sae.train_sae import train_sae
from refusing import refused
from small_chain import Chain, capture_params, model_params, train_params

DISK_KIB = 40


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 40 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root, to mount a disk that soon is full")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write_text_file(path: Path) -> None:
    write_json(path, list(range(40_000)))


def write_state(path: Path) -> None:
    save_state(path, {"x": torch.zeros(100_000)}, {})


def write_rows(path: Path) -> None:
    numbers = torch.randn(60_000, dtype=torch.float64).numpy()
    tables.write_table(path, pa.table({"x": numbers}), pa.schema([("x", pa.float64())]))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("write", [write_text_file, write_state, write_rows])
def test_a_full_disk_gets_one_line_and_leaves_no_partial_file(
    disk: Path, write: Callable[[Path], None]
) -> None:
    said = refused(write, disk / "folder/file.parquet")
    expected = "the disk is full; free some space and run again: finished work is kept"
    assert said == f"{disk / 'folder/file.parquet'}: {expected}"
    assert files(disk) == []


def test_the_previous_file_survives_a_full_disk(disk: Path) -> None:
    write_json(disk / "kept.json", 1)
    with pytest.raises(UserError):
        write_text_file(disk / "kept.json")
    assert (disk / "kept.json").read_text() == "1\n"


def stages(chain: Chain, root: Path) -> dict[str, Callable[[], Any]]:
    """Return stages that write more than fits on the disk."""
    from nullsae.activations.capture import cache_activations
    from nullsae.subjects.publish import randomize_model

    recipe = Sae.of(k=3, n_latents=1_000, batch_tokens=64, checkpoint_every_steps=2)
    return {
        "randomize_model": lambda: randomize_model(
            model_params(chain.source),
            trained=None,
            eval_tokens=chain.eval_tokens,
            output=root / "model",
        ),
        "cache_activations": lambda: cache_activations(
            capture_params(shard_tokens=256),
            split="sae_train",
            model=chain.recipe,
            tokens=chain.train_tokens,
            output=root / "activations",
        ),
        "train_sae": lambda: train_sae(
            train_params(recipe),
            train_activations=chain.train_activations,
            eval_activations=chain.eval_activations,
            output=root / "sae",
            work=root / "work",
        ),
    }


@pytest.mark.parametrize("stage", ["randomize_model", "cache_activations", "train_sae"])
def test_a_stage_on_a_full_disk_keeps_finished_files(
    chain: Chain, disk: Path, tmp_path: Path, stage: str
) -> None:
    assert refused(stages(chain, disk)[stage]).startswith(str(disk))
    assert [name for name in files(disk) if "partial" in name] == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    stages(chain, disk)[stage]()
    stages(chain, tmp_path / "roomy")[stage]()
    made = {
        n: (tmp_path / "roomy" / n).read_bytes()
        for n in files(tmp_path / "roomy")
        if n.endswith((".safetensors", "manifest.json"))
    }
    assert made
    assert {name: (disk / name).read_bytes() for name in made} == made
