"""Our own: `cfg.json` with `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, PositiveInt, field_validator

from nullsae.config.layouts import Layout
from nullsae.config.made_on import MadeOn
from nullsae.core.registry import lazy
from nullsae.jobs.keys import CellKeys
from nullsae.sae.later import Autoencoder

files: Any = lazy("nullsae.sae.files")


class Nullsae(Layout):
    """The keys of its `cfg.json` that describe what it was made on."""

    model_config = ConfigDict(extra="ignore")
    name, position = "nullsae", 4
    weights = ("sae.safetensors",)

    d_model: PositiveInt
    keys: CellKeys
    python_object: str | None = None
    transcoder: dict[str, Any] | None = None

    @field_validator("python_object")
    @classmethod
    def nothing_is_imported(cls, path: str | None) -> None:
        """Refuse code that a folder names, since anybody may have written it."""
        if path is not None:
            raise ValueError(f"{path!r} is code, which only a config's own `object` key may name")

    @classmethod
    def fits(cls, names: Any, config: Any) -> bool:
        return super().fits(names, config) and "d_model" in config

    @property
    def input_width(self) -> int:
        return self.d_model

    def made_on(self, folder: Path) -> MadeOn:
        return MadeOn(hook=self.keys.site)

    def writes(self, folder: Path) -> str | None:
        return None if self.transcoder is None else self.transcoder.get("output_site")

    def autoencoder(self, weights: Path) -> Autoencoder:
        sae: Autoencoder = files.load_sae(weights.with_name("cfg.json"))[0]
        return sae
