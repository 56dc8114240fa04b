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
from nullsae.core.registry import Registry

Shapes = dict[str, tuple[int, ...]]
# Of the files in a folder, in a message.
MOST_NAMES = 8


class Layout(Section):
    """The files of one SAE: what its JSON file says, without the weights.

    A section of the keys of that file. What an SAE of this project cannot be is refused when it is
    made of them, in a `ValueError` that names the key.
    """

    name: ClassVar[str]
    """Of the package."""
    position: ClassVar[int] = 1_000
    """Rank among layouts; the first that a folder fits is taken."""
    config_file: ClassVar[str] = "cfg.json"
    weights: ClassVar[tuple[str, ...]]
    """Names of the weights' file, the best first."""

    @classmethod
    def fits(cls, names: Collection[str], config: Mapping[str, Any]) -> bool:
        """Whether a folder with these files and this content of `config_file` is of this layout."""
        return any(name in names for name in cls.weights)

    @classmethod
    def content(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The section's keys from the content of the file.

        Raises:
            ValueError: something that cannot be had is asked for; names the key.
        """
        return config

    @classmethod
    def of(cls, config: dict[str, Any], where: str) -> Self:
        """From the content of the file.

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
        """Dimensions of the activations that it reads."""
        raise NotImplementedError

    def made_on(self, folder: Path) -> MadeOn:
        """What it was made on, by its files and the names of folders."""
        raise NotImplementedError

    def writes(self, folder: Path) -> str | None:
        """The site that a transcoder writes; None for an SAE."""
        return None

    def autoencoder(self, weights: Path) -> Any:
        """The SAE, a `nullsae.sae.autoencoder.Autoencoder`, in float32.

        Raises:
            UserError: the weights do not fit, or are damaged; names the tensor.
        """
        raise NotImplementedError


LAYOUTS = Registry("layouts", Layout, "nullsae.sae.exchange.layouts")


def read_config(file: Path) -> dict[str, Any]:
    """The content of an SAE's `config_file`; a `UserError` names one that cannot be read."""
    try:
        return read_object(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({first_line(error)})") from None


def find_layout(folder: Path, where: str) -> tuple[Layout, Path]:
    """What lies in a folder, and its weights.

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
        raise UserError(f"{where}: {str(folder)!r} holds several SAEs, {names}; leave one there")
    for weights, (layout, file, config) in found.items():
        return layout.of(config, str(file)), weights
    if unknown is not None:
        raise UserError(f"{unknown}: not a known format: it lacks the keys of {', '.join(LAYOUTS)}")
    every = LAYOUTS.values()
    configs = dict.fromkeys(layout.config_file for layout in every)
    weights_files = dict.fromkeys(name for layout in every for name in layout.weights)
    inner = next((name for name in there if (folder / name).is_dir()), None)
    hint = "" if inner is None else f"; of a folder in it write {folder}::{inner}"
    more = f" and {len(there) - MOST_NAMES} more" if len(there) > MOST_NAMES else ""
    holds = f"holds no SAE, only {', '.join(there[:MOST_NAMES])}{more}" if there else "is empty"
    raise UserError(
        f"{where}: {str(folder)!r} {holds}; an SAE has {' or '.join(configs)} beside "
        f"{' or '.join(weights_files)}{hint}"
    )


def local_folder(path: str, inside: str, where: str) -> Path:
    """A folder on this machine.

    Raises:
        UserError: it is not there; begins with `where`.
    """
    folder = Path(path).expanduser() / inside
    if folder.is_file():
        raise UserError(f"{where}: {str(folder)!r} is a file; give the folder that it lies in")
    if not folder.is_dir():
        raise UserError(
            f"{where}: {str(folder)!r} is not a folder; give one that holds an SAE, or a hub id "
            f"such as EleutherAI/sae-pythia-70m-32k::layers.3"
        )
    return folder


def cached_folder(repo_id: str, inside: str, *, weights: bool = True) -> Path | None:
    """A folder of a hub's repository in the hub's cache; None where no config or weights are."""
    import huggingface_hub

    prefix = f"{inside}/" if inside else ""
    for layout in LAYOUTS.values():
        try:
            found = huggingface_hub.try_to_load_from_cache(repo_id, prefix + layout.config_file)
        except ValueError:  # no name that a repository can have
            return None
        folder = Path(found).parent if isinstance(found, str) else None
        if folder and (not weights or any((folder / name).is_file() for name in layout.weights)):
            return folder
    return None


def layout_files() -> tuple[str, ...]:
    """Names of all files that some layout reads."""
    return tuple(
        dict.fromkeys(
            n for layout in LAYOUTS.values() for n in (layout.config_file, *layout.weights)
        )
    )
