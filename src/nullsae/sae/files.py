"""The SAE on disk: `sae.safetensors` beside a `cfg.json` that is enough to rebuild it."""

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
from nullsae.sae.python_object import ObjectSae, with_object
from nullsae.sae.transcoder import SKIP, Transcoder

PRETRAINED = "pretrained"


class TranscoderConfig(Section):
    """The keys of a transcoder that an SAE has not."""

    output_site: str
    """The site that its output stands for; what it reads is the site among the keys."""
    d_out: PositiveInt
    """Width of that site; `d_model` is that of the input."""
    skip: bool = False
    """Whether W_skip [d_out, d_model] times the input is added to the output."""

    @field_validator("output_site")
    @classmethod
    def site_is_one(cls, site: str) -> str:
        if not SITE.match(site):
            raise ValueError(f"{site!r} is no name of a site, such as mlp_out.3")
        return site


class SaeConfig(Section):
    """Content of `cfg.json`."""

    architecture: str
    """What the codes are made of: `nullsae.sae.autoencoder`."""
    dictionary: str
    """How it came about; `pretrained` was made elsewhere."""
    d_model: PositiveInt
    n_latents: PositiveInt
    k: PositiveInt | None
    """Latents kept per token; null where the architecture has no k."""
    normalization: Literal["none", "centre", "layer_norm", "constant_norm_rescale"] = "none"
    """What is done to each activation: `nullsae.sae.normalization`."""
    transcoder: TranscoderConfig | None = None
    """Null for an SAE."""
    python_object: str | None = None
    """Import path of what encodes, of architecture `object`: to load this SAE is to run that."""
    keys: CellKeys
    key: str
    """Hash of all that it was made of."""
    seed: int
    """The config's seed."""
    activations_key: str
    input_norm: NonNegativeFloat
    """Mean norm of the activations it was trained on; of `pretrained`, those it is evaluated on."""
    training: dict[str, Any]
    """The recipe, as in the config."""
    n_steps: NonNegativeInt
    """Optimizer steps; 0 for what is computed or was made elsewhere."""
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
            raise ValueError(f"k: null; a {self.architecture} SAE has a number there")
        if self.k is not None and (not has_k or self.k > self.n_latents):
            raise ValueError(
                f"k {self.k} does not fit architecture {self.architecture!r} with "
                f"{self.n_latents} latents"
            )
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors in `sae.safetensors`."""
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
    if isinstance(sae, Transcoder):
        d_out, skip = sae.w_dec.shape[1], sae.w_skip is not None
        described["transcoder"] = TranscoderConfig(
            output_site=sae.output_site, d_out=d_out, skip=skip
        )
    config = SaeConfig(weights_checksum=checksum(weights), **described)
    write_json(folder / "cfg.json", config.model_dump(mode="json"))


def load_sae(config_file: Path) -> tuple[Autoencoder, SaeConfig]:
    """Read an SAE, whose weights are float32 in memory.

    A `UserError` names a file that is missing or damaged, a key of the config or of the weights
    that is unknown or missing, or a tensor of another shape than the config says.
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
    if config.transcoder is not None:
        site = config.transcoder.output_site
        return Transcoder.of(tensors, config.architecture, config.k, site), config
    sae = Autoencoder.of(tensors, config.architecture, config.k)
    if config.python_object is not None:
        return with_object(sae, config.python_object, config.keys.site), config
    return replace(sae, normalization=config.normalization), config
