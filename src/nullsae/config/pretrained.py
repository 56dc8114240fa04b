"""Config key `saes.*.pretrained`: the source of an SAE that was made elsewhere."""

from __future__ import annotations

import re
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator

from nullsae.config.section import OTHER_SECTION, SECTION, Section, Trusted
from nullsae.config.sites import site_layer
from nullsae.core.errors import UserError

IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
Difference = Literal["model", "revision", "hook", "context_tokens", "prepend_bos", "data_set"]


class SaeLensRelease(Section):
    """An SAE in SAELens' own list, or in a hub repository of its layout."""

    release: Annotated[str, Field(min_length=1)]
    """Name in SAELens' list of pretrained SAEs, or a hub id."""
    sae_id: Annotated[str, Field(min_length=1)]
    """The SAE within it; `{site}` and `{layer}` are filled in."""


class FromSaeLens(Section):
    """Read by an installed `sae_lens` (`pip install 'nullsae[saelens]'`)."""

    saelens: SaeLensRelease

    def __str__(self) -> str:
        return f"{self.saelens.release}, {self.saelens.sae_id}"

    def at(self, site: str) -> FromSaeLens:
        """Return this with the site filled in."""
        release = self.saelens.model_copy(update={"sae_id": _filled(self.saelens.sae_id, site)})
        return FromSaeLens(saelens=release)


class FromObject(Section):
    """A Python object with `encode` and `decode`, both on tensors [tokens, width]."""

    object: Annotated[str, Trusted("jobs import this Python object and run it as you")]
    """Import path, `package.module:name`; a class or a function is called with the site's name."""
    d_model: PositiveInt
    """Dimensions of the activations that it reads."""
    files: tuple[str, ...] = ()
    """Files that it reads, such as weights; an edit of these makes the SAE again."""

    def __str__(self) -> str:
        return self.object

    @field_validator("object")
    @classmethod
    def object_is_an_import_path(cls, path: str) -> str:
        if not IMPORT_PATH.fullmatch(path):
            raise ValueError(f"{path!r} is not an import path, such as package.module:name")
        return path

    def source_file(self, where: str) -> Path:
        """Return the object's Python file, found without running any code.

        Raises:
            UserError: there is none; begins with `where`.
        """
        module = self.object.partition(":")[0]
        first, *inner = module.split(".")
        try:
            spec = find_spec(first)
        except ValueError:  # a module that is run rather than imported
            spec = None
        for part in inner:
            first += f".{part}"
            inside = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(first, list(inside)) if inside else None
        if spec is None or not (spec.origin or "").endswith(".py"):
            raise UserError(
                f"{where}.object: no Python file of the module {module!r} found; install its "
                f"package, or put its folder on PYTHONPATH"
            )
        return Path(str(spec.origin))


def _kind(given: Any) -> str:
    if isinstance(given, str):
        return "text"
    is_object = isinstance(given, FromObject) or (isinstance(given, dict) and "object" in given)
    return OTHER_SECTION if is_object else SECTION


Pretrained = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[FromSaeLens, Tag(SECTION)]
    | Annotated[FromObject, Tag(OTHER_SECTION)],
    Discriminator(_kind),
]


def pretrained_sae_path(pretrained: str, site: str) -> tuple[str, str]:
    """Return a pretrained SAE's (folder or hub id, folder within it) with the site filled in."""
    path, _, inside = _filled(pretrained, site).partition("::")
    return path, inside


def _filled(text: str, site: str) -> str:
    return text.replace("{site}", site).replace("{layer}", str(site_layer(site)))
