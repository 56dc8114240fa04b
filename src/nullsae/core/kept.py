"""Copies of what jobs of several SAEs made of each, for the next such job beside a new one."""

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
# Beside the copies: their key and checksums.
MADE = "made.json"


class Plain(Protocol):
    """A section of a config, or of params."""

    def model_dump(self, *, mode: Any = ...) -> dict[str, Any]:
        """Its fields, as plain values."""


class OfCell(Plain, Protocol):
    """Params of what is made of one SAE."""

    @property
    def keys(self) -> Plain:
        """Of its cell."""


P = TypeVar("P", bound=OfCell)


@dataclass(frozen=True)
class Kept:
    """Copies of SAEs' files, so that a job of several SAEs repeats nothing where one is new."""

    folder: Path
    """Of all SAEs; each has a folder of its own in it."""
    code: str
    """Hash of the code that makes them."""

    def copies(self, params: OfCell, sae: Path) -> Copies:
        """Return the copies of one SAE.

        Its `cfg.json` states the checksum of its weights; params hold the keys of activations.
        """
        names = (f"{n}={v}" for n, v in params.keys.model_dump().items())
        determined = [params.model_dump(mode="json"), self.code, checksum(sae)]
        return Copies(self.folder.joinpath(*names), content_key(determined))


@dataclass(frozen=True)
class Copies:
    """Copies of one SAE's files, of different names, in a folder."""

    folder: Path
    key: str
    """Of all that determines them."""

    def take(self, outputs: dict[str, Path]) -> bool:
        """Copy whole files of this key to their places; return whether there are any."""
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
        """Copy files; the file that marks them as whole comes last."""
        (self.folder / MADE).unlink(missing_ok=True)
        for path in outputs.values():
            _copy(path, self.folder / path.name)
        checksums = {name: checksum(path) for name, path in outputs.items()}
        write_json(self.folder / MADE, {"key": self.key, "checksums": checksums})


@dataclass(frozen=True)
class Unmade(Generic[P]):
    """An SAE whose files are to be made."""

    params: P
    sae: Path
    """Its `cfg.json`."""
    outputs: dict[str, Path]
    copies: Copies | None

    def keep(self) -> None:
        """Copy the files, now that they are made, for the next job."""
        if self.copies:
            self.copies.keep(self.outputs)


def unmade(
    each: Iterable[P],
    sae: str,
    outputs: dict[str, str],
    kept: Kept | None,
    group: Callable[[P], Hashable],
) -> list[list[Unmade[P]]]:
    """Take the copies that there are, and return the other SAEs in groups.

    Args:
        each: params of each SAE.
        sae: path of each `cfg.json`, in which keys of the cell are filled in.
        outputs: paths of the files that are made, the same.
        kept: where copies lie, if anywhere.
        group: what SAEs of one group have in common.
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
