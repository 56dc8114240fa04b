"""What explainers and scorers of kind `import` share: which file belongs to which cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, field_validator

from nullsae.config.section import Kind
from nullsae.config.sites import site_layer
from nullsae.core.errors import UserError
from nullsae.core.folders import expanded

Key = Literal["subject", "variant", "draw", "site", "sae", "seed"]
KEYS = ("subject", "variant", "draw", "site", "sae", "seed")
# `{layer}` is the number in the site's name, which other tools use in the names of hooks.
FIELDS = (*KEYS, "layer")
_ONLY = ", ".join(f"{{{name}}}" for name in FIELDS)
Keys = Mapping[str, str]


class Imported(Kind):
    """Reads what was made elsewhere, from a file or folder per cell."""

    path: Annotated[str, Field(min_length=1)]
    """Folder of a delphi run, folder or file of Neuronpedia, CSV or Parquet file. Keys of the cell
    are filled in: `{subject}`, `{variant}`, `{draw}`, `{site}`, `{sae}`, `{seed}`, and `{layer}`,
    the block in the site's name."""
    cells: dict[Key, str | int] = Field(default_factory=dict)
    """The cells that have files, such as `{sae: theirs, seed: 0}`. If the path has no `{variant}`,
    the variant is `trained` unless this names another."""
    source: str | None = None
    """The delphi hookpoint, such as `layers.{layer}`, or Neuronpedia source, such as
    `{layer}-res-jb`, to read; needed if the files have several."""
    model: str | None = None
    """Read only explanations by this language model, named as in Neuronpedia's rows or the column
    `model`; needed if a latent has several."""

    @field_validator("path", "source")
    @classmethod
    def keys_are_known(cls, text: str | None) -> str | None:
        try:
            fields = list(Formatter().parse(text or ""))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}; keys are {_ONLY}") from None
        for _, name, form, conversion in fields:
            if name is not None and (name not in FIELDS or form or conversion):
                raise ValueError(f"{{{name}}} is not a key of a cell; {_ONLY} are")
        return text

    @property
    def wanted(self) -> Keys:
        """The keys, with their values, that a cell with files must have."""
        named = {name for _, name, _, _ in Formatter().parse(self.path)}
        return ({} if "variant" in named else {"variant": "trained"}) | {
            str(key): str(value) for key, value in self.cells.items()
        }

    def file_of(self, keys: Keys) -> Path | None:
        """Return the file or folder of a cell; None if the config gives it none."""
        if any(keys[key] != value for key, value in self.wanted.items()):
            return None
        return expanded(self.path.format(**_filled(keys)))

    def source_of(self, keys: Keys) -> str | None:
        """Return the source in a cell's file to read; None if the config names none."""
        return None if self.source is None else self.source.format(**_filled(keys))

    def found(self, keys: Keys) -> Path | None:
        """Return `file_of` a cell, which must exist.

        Raises:
            UserError: it does not.
        """
        path = self.file_of(keys)
        if path is not None and not path.exists():
            raise UserError(
                f"{path}: does not exist, but kind import reads it for "
                f"{', '.join(f'{key} {keys[key]}' for key in KEYS)}; name the cells that have "
                f"files in `cells`, such as {{variant: trained}}"
            )
        return path

    def check_cells(self, every: Iterable[Keys], where: str) -> None:
        """Refuse a path that gives several cells one file, as their SAEs have different latents.

        Args:
            every: the keys of all cells of the study.
            where: the config key of this section.

        Raises:
            UserError: names a key to put into the path.
        """
        taken: dict[tuple[Path, str | None], Keys] = {}
        for keys in every:
            path = self.file_of(keys)
            if path is None:
                continue
            first = taken.setdefault((path, self.source_of(keys)), keys)
            if lacking := [key for key in KEYS if first[key] != keys[key]]:
                key = lacking[0]
                raise UserError(
                    f"{where}.path: {self.path!r} is the same file for {key} {first[key]} and for "
                    f"{key} {keys[key]}, whose latents differ; put {{{key}}} into it, or name the "
                    f"one that the file describes: `cells: {{{key}: {first[key]}}}`"
                )
        if not taken:
            asked = ", ".join(f"{key} {value}" for key, value in self.wanted.items())
            raise UserError(f"{where}.cells: the study has no SAE of {asked}")


def _filled(keys: Keys) -> dict[str, str]:
    return {**keys, "layer": str(site_layer(keys["site"]))}
