"""The SAE on disk: `sae.safetensors` with a `cfg.json` that is sufficient to rebuild it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.parse import parse_section
from nullsae.config.plain import read_object
from nullsae.config.section import Section
from nullsae.config.sites import SITE
from nullsae.core.checkpoint import save_tensors
from nullsae.core.errors import UserError, first_line
from nullsae.core.files import checksum, rebuild_command, verify, write_json
from nullsae.jobs.keys import CellKeys
from nullsae.sae.autoencoder import Autoencoder, codings, shapes
from nullsae.sae.python_object import ObjectSae, imported, with_object
from nullsae.sae.transcoder import SKIP, Transcoder

PRETRAINED = "pretrained"


class TranscoderConfig(Section):
    """The keys that only transcoders have."""

    output_site: str
    """The site that its output replaces; it reads the site among the keys."""
    d_out: PositiveInt
    """Width of that site; `d_model` is that of the input."""
    skip: bool = False
    """Whether W_skip [d_out, d_model] times the input is added to the output."""

    @field_validator("output_site")
    @classmethod
    def site_is_one(cls, site: str) -> str:
        if not SITE.match(site):
            raise ValueError(f"{site!r} is not the name of a site, such as mlp_out.3")
        return site


class SaeConfig(Section):
    """Content of `cfg.json`."""

    architecture: str
    """What computes the codes: `nullsae.sae.autoencoder`."""
    dictionary: str
    """How it was made; `pretrained` was made elsewhere."""
    d_model: PositiveInt
    n_latents: PositiveInt
    k: PositiveInt | None
    """Latents kept per token; null if the architecture has no k."""
    normalization: Literal["none", "centre", "layer_norm", "constant_norm_rescale"] = "none"
    """Applied to each activation: `nullsae.sae.normalization`."""
    transcoder: TranscoderConfig | None = None
    """Null for an SAE."""
    python_object: str | None = None
    """Import path of the encoder, for architecture `object`; loading this SAE runs it."""
    keys: CellKeys
    key: str
    """Hash of everything that it was made of."""
    seed: int
    """The config's seed."""
    activations_key: str
    input_norm: NonNegativeFloat
    """Mean norm of the activations it was trained on, or for `pretrained` is evaluated on."""
    training: dict[str, Any]
    """The recipe, as in the config."""
    n_steps: NonNegativeInt
    """Optimizer steps; 0 if it was computed or made elsewhere."""
    weights_checksum: str

    @field_validator("architecture", "dictionary")
    @classmethod
    def kind_is_known(cls, name: str, info: ValidationInfo) -> str:
        own = info.field_name == "architecture"
        known = [*codings()] if own else [*DICTIONARIES, PRETRAINED]
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
        return name

    @model_validator(mode="after")
    def k_fits(self) -> Self:
        has_k = codings()[self.architecture].has_k
        if self.k is None and has_k:
            raise ValueError(f"k: null, but a {self.architecture} SAE needs a number")
        if self.k is not None and (not has_k or self.k > self.n_latents):
            raise ValueError(
                f"k {self.k} does not fit architecture {self.architecture!r} with "
                f"{self.n_latents} latents"
            )
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the tensors in `sae.safetensors`."""
        coding = codings()[self.architecture]
        found = shapes(self.n_latents, self.d_model)
        if not coding.has_encoder:
            found["encoder.weight"] = (0, self.d_model)
        found |= dict.fromkeys(coding.own_tensors, (self.n_latents,))
        if (own := self.transcoder) is not None:
            found |= {"W_dec": (self.n_latents, own.d_out), "b_dec": (own.d_out,)}
            found |= {SKIP: (own.d_out, self.d_model)} if own.skip else {}
        return found


def save_sae(
    sae: Autoencoder, folder: Path, *, dtype: torch.dtype = torch.float32, **described: Any
) -> None:
    """Write the weights, then the config, which makes the folder complete.

    Matrices are rounded to `dtype`, vectors are float32. `described` is the rest of `SaeConfig`.
    """
    weights = folder / "sae.safetensors"
    tensors = {
        name: tensor.to(dtype if tensor.dim() > 1 else torch.float32)
        for name, tensor in sae.parameters().items()
    }
    save_tensors(weights, tensors)
    own = ("architecture", "d_model", "n_latents", "k", "normalization")
    described |= {key: getattr(sae, key) for key in own}
    if isinstance(sae, ObjectSae):
        described["python_object"] = sae.path
    if sae.transcodes:
        site, skip = sae.writes_at(described["keys"].site), SKIP in tensors
        described["transcoder"] = TranscoderConfig(
            output_site=site, d_out=sae.w_dec.shape[1], skip=skip
        )
    config = SaeConfig(weights_checksum=checksum(weights), **described)
    write_json(folder / "cfg.json", config.model_dump(mode="json"))


def load_sae(config_file: Path) -> tuple[Autoencoder, SaeConfig]:
    """Read an SAE, with weights as float32.

    Raises a `UserError` if a file is missing or damaged, a key of the config or of the weights is
    unknown or missing, or a tensor's shape differs from the config.
    """
    rebuild = rebuild_command(config_file)
    if not config_file.is_file():
        raise UserError(f"{config_file}: the file is missing; rebuild it with: {rebuild}")
    try:
        data = read_object(config_file)
    except (OSError, ValueError) as error:
        raise UserError(f"{config_file}: not readable as JSON ({first_line(error)})") from None
    config = parse_section(SaeConfig, data, where=str(config_file))
    weights = config_file.parent / "sae.safetensors"
    verify(weights, config.weights_checksum, rebuild=rebuild)
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
    except SafetensorError as error:
        raise UserError(f"{weights}: {error}; rebuild it with: {rebuild}") from None
    shapes = config.shapes()
    for name in sorted(tensors.keys() | shapes.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name):
            raise UserError(f"{weights}: {name} is {found}, should be {shapes.get(name)}")
    written = "" if config.transcoder is None else config.transcoder.output_site
    if (path := config.python_object) is not None:
        sae = Autoencoder.of(tensors, config.architecture, config.k)
        return with_object(sae, path, imported(path, config.keys.site), written), config
    if written:
        return Transcoder.of(tensors, config.architecture, config.k, written), config
    sae = Autoencoder.of(tensors, config.architecture, config.k)
    return replace(sae, normalization=config.normalization), config
