"""EleutherAI's sparsify: `cfg.json` with `sae.safetensors`, in a folder named after its module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from nullsae.config.hooks import site_of_hook
from nullsae.config.layouts import Layout
from nullsae.config.made_on import MadeOn
from nullsae.config.plain import read_object
from nullsae.core.errors import UserError, first_line
from nullsae.core.registry import lazy
from nullsae.sae.later import Autoencoder, autoencoder

tensors: Any = lazy("nullsae.sae.exchange.tensors")
transcoder: Any = lazy("nullsae.sae.transcoder")


class Sparsify(Layout):
    """Content of its `cfg.json`; keys that older versions did not write have defaults."""

    name, position = "sparsify", 3
    weights = ("sae.safetensors",)

    d_in: PositiveInt
    k: PositiveInt
    expansion_factor: PositiveInt
    num_latents: NonNegativeInt = 0
    """0 means d_in * expansion_factor."""
    activation: Literal["topk", "groupmax"] = "topk"
    normalize_decoder: bool = True
    """Only for training, like `multi_topk`."""
    multi_topk: bool = False
    signed: bool = False
    skip_connection: bool = False
    transcode: bool = False

    @model_validator(mode="after")
    def is_plain(self) -> Self:
        if self.signed:
            raise ValueError("signed is true, which is not supported; only plain SAEs are")
        if self.skip_connection and not self.transcode:
            raise ValueError("skip_connection is true, which requires transcode")
        if self.k > self.n_latents:
            raise ValueError(f"k {self.k} is larger than the number of latents, {self.n_latents}")
        if self.activation == "groupmax" and self.n_latents % self.k:
            raise ValueError(f"k {self.k} does not divide the {self.n_latents} latents of groupmax")
        return self

    @classmethod
    def fits(cls, names: Any, config: Any) -> bool:
        return super().fits(names, config) and "d_in" in config

    @property
    def n_latents(self) -> int:
        return self.num_latents or self.d_in * self.expansion_factor

    @property
    def input_width(self) -> int:
        return self.d_in

    def made_on(self, folder: Path) -> MadeOn:
        """Take it from the folder's name, and from the `config.json` of the training above it."""
        folder = _of_module(folder)
        file = folder.parent / "config.json"
        try:
            run = read_object(file) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: not readable as JSON ({first_line(error)})") from None
        name = f"{folder.name}.input" if self.transcode else folder.name
        hook = name if site_of_hook(name) else None
        context = run.get("ctx_len")
        return MadeOn(
            model=_text(run.get("model")),
            revision=_text(run.get("revision")),
            hook=hook,
            context_tokens=context if isinstance(context, int) else None,
            data_set=_text(run.get("dataset")),
        )

    def writes(self, folder: Path) -> str | None:
        return site_of_hook(_of_module(folder).name) if self.transcode else None

    def autoencoder(self, weights: Path) -> Autoencoder:
        """Return an SAE, or a transcoder from the module's input to its output."""
        shapes = autoencoder.shapes(self.n_latents, self.d_in)
        if self.skip_connection:
            shapes |= {transcoder.SKIP: (self.d_in, self.d_in)}
        found = tensors.fitting_tensors(tensors.stored_tensors(weights), shapes, weights)
        if not self.transcode:
            return autoencoder.Autoencoder.of(found, self.activation, self.k)
        if (site := self.writes(weights.parent)) is None:
            raise UserError(
                f"{weights.with_name('cfg.json')}: transcode is true, but the folder is not named "
                f"after its module, e.g. layers.3.mlp, so the site it writes is unknown"
            )
        made: Autoencoder = transcoder.Transcoder.of(found, self.activation, self.k, site)
        return made


def _of_module(folder: Path) -> Path:
    """Return the folder with the module's name, which contains those of several seeds."""
    return folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
