"""Copies of each SAE's files, so that a job of many SAEs need not repeat those it made before."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from nullsae.core.files import atomic_path, checksum, content_key, write_json

log = logging.getLogger(__name__)
# The file with the copies' key and checksums, next to them.
MADE = "made.json"


class Plain(Protocol):
    """A section of a config, or of params."""

    def model_dump(self, *, mode: Any = ...) -> dict[str, Any]:
        """Return its fields as plain values."""


class OfCell(Plain, Protocol):
    """Params of what is made for one SAE."""

    @property
    def keys(self) -> Plain:
        """The keys of its cell."""


P = TypeVar("P", bound=OfCell)


@dataclass(frozen=True)
class Kept:
    """Copies of SAEs' files, so that a job of many SAEs repeats none when one SAE is new."""

    folder: Path
    """Holds one folder per SAE."""
    code: str
    """Hash of the code that makes the files."""

    def copies(self, params: OfCell, sae: Path) -> Copies:
        """Return the copies of one SAE.

        Their key covers the params, with the keys of the activations, and the SAE's `cfg.json`,
        with the checksum of its weights.
        """
        names = (f"{n}={v}" for n, v in params.keys.model_dump().items())
        determined = [params.model_dump(mode="json"), self.code, checksum(sae)]
        return Copies(self.folder.joinpath(*names), content_key(determined))


@dataclass(frozen=True)
class Copies:
    """Copies of one SAE's files, with distinct names, in a folder."""

    folder: Path
    key: str
    """Key of everything that determines them."""

    def take(self, outputs: dict[str, Path]) -> bool:
        """Copy the files to their places; return False if they are damaged or of another key."""
        try:
            made = json.loads((self.folder / MADE).read_text(encoding="utf-8"))
            whole = made["key"] == self.key and all(
                checksum(self.folder / path.name) == made["checksums"][name]
                for name, path in outputs.items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False
        for path in outputs.values() if whole else ():
            _copy(self.folder / path.name, path)
        return whole

    def keep(self, outputs: dict[str, Path]) -> None:
        """Copy files; write the one that marks them as complete last."""
        (self.folder / MADE).unlink(missing_ok=True)
        for path in outputs.values():
            _copy(path, self.folder / path.name)
        checksums = {name: checksum(path) for name, path in outputs.items()}
        write_json(self.folder / MADE, {"key": self.key, "checksums": checksums})


@dataclass(frozen=True)
class Unmade(Generic[P]):
    """An SAE whose files have to be made."""

    params: P
    sae: Path
    """Its `cfg.json`."""
    outputs: dict[str, Path]
    copies: Copies | None

    def keep(self) -> None:
        """Keep copies of the finished files for the next job."""
        if self.copies:
            self.copies.keep(self.outputs)


def unmade(
    each: Iterable[P],
    sae: str,
    outputs: dict[str, str],
    kept: Kept | None,
    group: Callable[[P], Hashable],
) -> list[list[Unmade[P]]]:
    """Restore the files of SAEs that have copies, and return the other SAEs in groups.

    Args:
        each: params of each SAE.
        sae: path of each `cfg.json`, as a template for the keys of the cell.
        outputs: paths of the files to make, as such templates.
        kept: where the copies are, if anywhere.
        group: returns what SAEs of one group have in common.
    """
    groups: dict[Hashable, list[Unmade[P]]] = {}
    for params in each:
        own = params.keys.model_dump()
        config = Path(sae.format(**own))
        files = {name: Path(path.format(**own)) for name, path in outputs.items()}
        copies = kept.copies(params, config) if kept and config.is_file() else None
        if copies and copies.take(files):
            log.info("%s: made before, its files are copied", config.parent)
        else:
            groups.setdefault(group(params), []).append(Unmade(params, config, files, copies))
    return list(groups.values())


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
