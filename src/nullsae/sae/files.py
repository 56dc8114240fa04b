"""The SAE on disk: `sae.safetensors` beside a `cfg.json` that is enough to rebuild it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nullsae.errors import UserError
from nullsae.files import atomic_path, checksum, rebuild_command, verify, write_json
from nullsae.inputs import Section
from nullsae.params import CellKeys
from nullsae.sae.topk import PARAMETERS, TopKSae
from nullsae.validation import parse_section


class SaeConfig(Section):
    """Content of `cfg.json`."""

    architecture: Literal["topk"]
    dictionary: Literal["learned"]
    d_model: PositiveInt
    n_latents: PositiveInt
    k: PositiveInt
    keys: CellKeys
    seed: int
    """The config's seed."""
    activations_key: str
    input_norm: PositiveFloat
    """Mean norm of the activations it was trained on."""
    training: dict[str, Any]
    """The recipe, as in the config."""
    n_steps: int
    weights_checksum: str


def save_sae(sae: TopKSae, folder: Path, **described: Any) -> None:
    """Write the weights as float32, then the config; the config makes the folder complete."""
    weights = folder / "sae.safetensors"
    tensors = {name: t.float().cpu().contiguous() for name, t in sae.parameters().items()}
    with atomic_path(weights) as temporary:
        save_file(tensors, temporary)
    config = SaeConfig(
        d_model=sae.w_dec.shape[1],
        n_latents=sae.n_latents,
        k=sae.k,
        weights_checksum=checksum(weights),
        **described,
    )
    write_json(folder / "cfg.json", config.model_dump(mode="json"))


def load_sae(config_file: Path) -> tuple[TopKSae, SaeConfig]:
    """Read an SAE.

    Raises:
        UserError: a file is missing or damaged, or a key of the config or of the weights is
            unknown or missing, or a tensor has another shape than the config says.
    """
    rebuild = rebuild_command(config_file)
    if not config_file.is_file():
        raise UserError(f"{config_file}: the file is missing; rebuild it with: {rebuild}")
    try:
        data = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config_file}: not readable as JSON ({error})") from None
    config = parse_section(SaeConfig, data, where=str(config_file))
    weights = config_file.parent / "sae.safetensors"
    verify(weights, config.weights_checksum, rebuild=rebuild)
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights}: {error}; rebuild it with: {rebuild}") from None
    wide, d = (config.n_latents, config.d_model), (config.d_model,)
    shapes = dict(zip(PARAMETERS, (wide, wide[:1], wide, d), strict=True))
    for name in sorted(tensors.keys() | shapes.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name):
            raise UserError(f"{weights}: {name} is {found}, should be {shapes.get(name)}")
    return TopKSae.of(tensors, config.k), config
