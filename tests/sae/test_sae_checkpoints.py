"""An SAE along its training is taken whole and from the right training, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nullsae import tables
from nullsae.config.saes import Sae
from nullsae.core.files import rebuild_command
from nullsae.jobs.keys import CellKeys
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.checkpoints import checkpoint_folder, take_checkpoint
from nullsae.sae.files import load_sae
from nullsae.sae.train_sae import train_sae
from nullsae.sae.trainer import evaluate
from refusing import refused
from small_chain import SITES, Chain, all_rows, cell, flip_byte, train_params, write_sae

SHARE = 0.25
D, WIDTH = 4, 10
ROW: dict[str, Any] = {
    field.name: None if field.nullable else 1 if field.name in ("step", "tokens") else 0.5
    for field in tables.cell_schema("history")
}
FILES = ("cfg.json", "history.parquet", "sae.safetensors")


def write(folder: Path, name: str, n_steps: int, **changes: Any) -> Path:
    """Write an SAE with its own weights, as `train_sae` does."""
    g = torch.Generator().manual_seed(n_steps)
    keys = CellKeys(**{**cell().model_dump(), "sae": name})
    described: dict[str, Any] = {
        **{"keys": keys, "activations_key": "captured", "key": "made of"},
        **{"input_norm": 2.5, "training": {"k": 3}, "n_steps": n_steps},
    }
    rows = torch.randn(WIDTH, D, generator=g)
    sae = Autoencoder("topk", rows, rows.sum(1), rows.clone(), rows.sum(0), k=3)
    tables.write_table(
        folder / "history.parquet", [{**ROW, "step": n_steps}], tables.cell_schema("history")
    )
    return write_sae(sae, folder, **{**described, **changes})


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return `cfg.json` of an SAE whose training left two more behind."""
    config = write(tmp_path / "whole", "topk", 40)
    write(checkpoint_folder(config.parent, SHARE), "topk@0.25", 10)
    write(checkpoint_folder(config.parent, 0.5), "topk@0.5", 20)
    return config


def refusal(whole: Path, output: Path, share: float = SHARE) -> str:
    text = refused(take_checkpoint, whole, share=share, output=output)
    # The files in the way are not outputs of a rule; only the whole training makes them again.
    assert text.endswith(rebuild_command(whole))
    assert not output.exists()
    return text


def test_a_copy_equals_what_the_training_left(whole: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    take_checkpoint(whole, share=SHARE, output=taken)
    found = checkpoint_folder(whole.parent, SHARE)
    assert sorted(path.name for path in taken.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (taken / name).read_bytes() == (found / name).read_bytes()
    config = load_sae(taken / "cfg.json")[1]
    assert (config.keys.sae, config.n_steps) == ("topk@0.25", 10)
    shutil.rmtree(whole.parent)  # a copy, not a link
    load_sae(taken / "cfg.json")


def test_a_share_that_was_not_kept_is_refused(whole: Path, tmp_path: Path) -> None:
    text = refusal(whole, tmp_path / "taken", share=0.3)
    assert text.startswith(f"{checkpoint_folder(whole.parent, 0.3)}: the training of ")
    assert "`checkpoints`" in text


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    file = checkpoint_folder(whole.parent, SHARE) / name
    if name != "cfg.json":
        flip_byte(file, -6)
        assert refusal(whole, tmp_path / "taken").startswith(f"{file}: ")
    file.unlink()
    refusal(whole, tmp_path / "taken")


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("key", "made of something else"),
        ("seed", 1),
        ("activations_key", "captured elsewhere"),
        ("training", {"k": 4}),
        ("keys", cell(seed=3)),
        ("n_steps", 41),
    ],
)
def test_an_sae_of_another_training_is_refused(
    whole: Path, tmp_path: Path, changed: str, value: Any
) -> None:
    own = {changed: value} if changed != "n_steps" else {}
    n_steps = value if changed == "n_steps" else 10
    write(checkpoint_folder(whole.parent, SHARE), "topk@0.25", n_steps, **own)
    text = refusal(whole, tmp_path / "taken")
    assert f"({changed} differ)" in text


def test_the_sae_of_another_share_is_refused(whole: Path, tmp_path: Path) -> None:
    found, other = (checkpoint_folder(whole.parent, share) for share in (SHARE, 0.5))
    shutil.rmtree(found)
    shutil.copytree(other, found)
    assert "(keys differ)" in refusal(whole, tmp_path / "taken")


def test_a_missing_whole_sae_is_refused(whole: Path, tmp_path: Path) -> None:
    whole.unlink()
    assert refusal(whole, tmp_path / "taken").startswith(f"{whole}: the file is missing")


def test_a_real_training_leaves_the_sae_of_that_step(chain: Chain, tmp_path: Path) -> None:
    recipe = Sae.of(k=4, n_latents=32, lr=1e-2, batch_tokens=64, checkpoints=(SHARE,))
    train_sae(
        train_params(recipe),
        train_activations=chain.train_activations,
        eval_activations=chain.eval_activations,
        output=tmp_path / "whole",
        work=tmp_path / "work",
    )
    take_checkpoint(tmp_path / "whole/cfg.json", share=SHARE, output=tmp_path / "taken")
    whole, taken = (load_sae(tmp_path / name / "cfg.json") for name in ("whole", "taken"))
    n_steps = whole[1].n_steps
    assert (taken[1].n_steps, n_steps) == (n_steps // 4, 16)  # 1,024 tokens of 64 a step
    # The weights are those on which the training curve was measured at that step.
    (row,) = tables.read_table(
        tmp_path / "taken/history.parquet", tables.cell_schema("history")
    ).to_pylist()
    assert (row["step"], row["tokens"]) == (4, 256)
    x, _ = all_rows(chain.eval_activations, SITES[1])
    found = evaluate(taken[0], x)["heldout_explained_variance"]
    assert found == pytest.approx(row["heldout_explained_variance"], abs=1e-5)
    assert evaluate(whole[0], x)["heldout_explained_variance"] > found + 0.01
