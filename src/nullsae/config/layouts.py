"""How packages lay out an SAE on disk: base of the layouts in `nullsae.sae.exchange.layouts`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from nullsae.config.made_on import MadeOn
from nullsae.config.parse import parse_section
from nullsae.config.plain import read_object
from nullsae.config.section import Section
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import expanded
from nullsae.core.registry import Registry

Shapes = dict[str, tuple[int, ...]]
# Files of a folder that a message names.
MOST_NAMES = 8


class Layout(Section):
    """The JSON config of one SAE on disk, without the weights.

    A section with the keys of that file. An SAE that this project cannot represent is refused when
    the section is made, with a `ValueError` that names the key.
    """

    name: ClassVar[str]
    """Name of the package."""
    position: ClassVar[int] = 1_000
    """Rank among layouts; the first that fits a folder is taken."""
    config_file: ClassVar[str] = "cfg.json"
    weights: ClassVar[tuple[str, ...]]
    """Names of the weights' file, the preferred first."""

    @classmethod
    def fits(cls, names: Collection[str], config: Mapping[str, Any]) -> bool:
        """Return whether a folder with these files and this `config_file` has this layout."""
        return any(name in names for name in cls.weights)

    @classmethod
    def content(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return the section's keys from the content of the file.

        Raises:
            ValueError: the file asks for something unsupported; names the key.
        """
        return config

    @classmethod
    def of(cls, config: dict[str, Any], where: str) -> Self:
        """Make the section from the content of the file.

        Raises:
            UserError: begins with `where` and names the key.
        """
        try:
            return parse_section(cls, cls.content(config), where=where)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: {error} is missing or has a wrong type") from None
        except ValueError as error:
            raise UserError(f"{where}: {first_line(error)}") from None

    @property
    def input_width(self) -> int:
        """Dimensions of the activations that the SAE reads."""
        raise NotImplementedError

    def made_on(self, folder: Path) -> MadeOn:
        """Return what the SAE was made on, by its files and the names of folders."""
        raise NotImplementedError

    def writes(self, folder: Path) -> str | None:
        """Return the site that a transcoder writes; None for an SAE."""
        return None

    def autoencoder(self, weights: Path) -> Any:
        """Read the SAE as a `nullsae.sae.autoencoder.Autoencoder` in float32.

        Raises:
            UserError: the weights do not fit the config or are damaged; names the tensor.
        """
        raise NotImplementedError


LAYOUTS = Registry("layouts", Layout, "nullsae.sae.exchange.layouts")


def read_config(file: Path) -> dict[str, Any]:
    """Read an SAE's `config_file`; a `UserError` names one that cannot be read."""
    try:
        return read_object(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({first_line(error)})") from None


def find_layout(folder: Path, where: str) -> tuple[Layout, Path]:
    """Return the layout of the SAE in a folder, and its weights' file.

    Raises:
        UserError: no SAE, more than one, or one that cannot be read; names `where` or the file.
    """
    there, unknown = sorted(file.name for file in folder.iterdir()), None
    found: dict[Path, tuple[type[Layout], Path, dict[str, Any]]] = {}
    for layout in LAYOUTS.values():
        if layout.config_file not in there or not any(n in there for n in layout.weights):
            continue
        file = folder / layout.config_file
        config = read_config(file)
        if layout.fits(there, config):
            weights = next(folder / name for name in layout.weights if name in there)
            found.setdefault(weights, (layout, file, config))
        else:
            unknown = file
    if len(found) > 1:
        names = " and ".join(weights.name for weights in found)
        raise UserError(f"{where}: {str(folder)!r} holds several SAEs, {names}; leave only one")
    for weights, (layout, file, config) in found.items():
        return layout.of(config, str(file)), weights
    if unknown is not None:
        raise UserError(f"{unknown}: not a known format: it lacks the keys of {', '.join(LAYOUTS)}")
    every = LAYOUTS.values()
    configs = dict.fromkeys(layout.config_file for layout in every)
    weights_files = dict.fromkeys(name for layout in every for name in layout.weights)
    inner = next((name for name in there if (folder / name).is_dir()), None)
    hint = "" if inner is None else f"; for a folder in it write {folder}::{inner}"
    more = f" and {len(there) - MOST_NAMES} more" if len(there) > MOST_NAMES else ""
    holds = f"holds no SAE, only {', '.join(there[:MOST_NAMES])}{more}" if there else "is empty"
    raise UserError(
        f"{where}: {str(folder)!r} {holds}; an SAE has {' or '.join(configs)} next to "
        f"{' or '.join(weights_files)}{hint}"
    )


def local_folder(path: str, inside: str, where: str) -> Path:
    """Return a folder on this machine.

    Raises:
        UserError: it does not exist; begins with `where`.
    """
    folder = expanded(path) / inside
    if folder.is_file():
        raise UserError(f"{where}: {str(folder)!r} is a file; give the folder that it is in")
    if not folder.is_dir():
        raise UserError(
            f"{where}: {str(folder)!r} is not a folder; give a folder with an SAE, or a hub id "
            f"such as EleutherAI/sae-pythia-70m-32k::layers.3"
        )
    return folder


def cached_folder(repo_id: str, inside: str, *, weights: bool = True) -> Path | None:
    """Return a folder of a hub repository in the hub's cache; None without config or weights."""
    import huggingface_hub

    prefix = f"{inside}/" if inside else ""
    for layout in LAYOUTS.values():
        try:
            found = huggingface_hub.try_to_load_from_cache(repo_id, prefix + layout.config_file)
        except ValueError:  # not a valid name of a repository
            return None
        folder = Path(found).parent if isinstance(found, str) else None
        if folder and (not weights or any((folder / name).is_file() for name in layout.weights)):
            return folder
    return None


def layout_files() -> tuple[str, ...]:
    """Return the names of all files that some layout reads."""
    return tuple(
        dict.fromkeys(
            n for layout in LAYOUTS.values() for n in (layout.config_file, *layout.weights)
        )
    )
