"""SAEs at points of their training: where training leaves them, and how to take one."""

from __future__ import annotations

import shutil
from pathlib import Path

from nullsae import tables
from nullsae.config.parse import parse_section
from nullsae.config.saes import checkpoint_name
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, read_json, rebuild_command, verify
from nullsae.sae.files import SaeConfig

# What an SAE shares with itself at an earlier step.
CONSTANT = (
    *("architecture", "dictionary", "d_model", "n_latents", "k", "key", "seed"),
    *("activations_key", "input_norm", "training"),
)


def checkpoint_folder(folder: Path, share: float) -> Path:
    """Return where the training of the SAE in `folder` leaves it after a share of its steps."""
    return folder / "checkpoints" / f"{share:g}"


def take_checkpoint(sae: Path, *, share: float, output: Path) -> None:
    """Copy an SAE as it was after a share of its training into its own folder.

    `sae` is the `cfg.json` of the finished SAE, in the folder that its training wrote. The copy's
    `cfg.json` is written last. Raises a `UserError` if the training left nothing at that share, or
    what it left is damaged or from another training than that of `sae`.
    """
    rebuild = rebuild_command(sae)

    def described(config_file: Path) -> SaeConfig:
        data = read_json(config_file, rebuild=rebuild)
        return parse_section(SaeConfig, data, where=str(config_file))

    whole = described(sae)
    found = checkpoint_folder(sae.parent, share)
    if not (found / "cfg.json").is_file():
        raise UserError(
            f"{found}: the training of {sae.parent} left no SAE at this share; give the share in "
            f"`checkpoints` of its recipe, and rebuild it with: {rebuild}"
        )
    taken = described(found / "cfg.json")
    # Copied as bytes, so that nothing is loaded into memory.
    verify(found / "sae.safetensors", taken.weights_checksum, rebuild=rebuild)
    schema = tables.cell_schema("history")
    history = tables.read_table(found / "history.parquet", schema, rebuild=rebuild)
    other = [name for name in CONSTANT if getattr(taken, name) != getattr(whole, name)]
    keys = whole.keys.model_copy(update={"sae": checkpoint_name(whole.keys.sae, share)})
    if taken.keys != keys:
        other.append("keys")
    if not 0 < taken.n_steps <= whole.n_steps:
        other.append("n_steps")
    if other:
        raise UserError(
            f"{found / 'cfg.json'}: not from the training of {sae} ({', '.join(other)} differ); "
            f"rebuild it with: {rebuild}"
        )
    tables.write_table(output / "history.parquet", history, schema)
    for name in ("sae.safetensors", "cfg.json"):
        with atomic_path(output / name) as temporary:
            shutil.copyfile(found / name, temporary)
