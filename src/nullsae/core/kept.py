"""Copies of what jobs of several SAEs made of each, for the next such job beside a new one."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

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


def unmade(
    each: Iterable[P],
    sae: str,
    outputs: dict[str, str],
    kept: Kept | None,
    group: Callable[[P], Hashable],
) -> Iterator[tuple[list[tuple[P, Path, dict[str, Path]]], int]]:
    """Take the copies that there are, and yield the other SAEs, to be made group by group.

    Args:
        each: params of each SAE.
        sae: path of each `cfg.json`, in which keys of the cell are filled in.
        outputs: paths of the files that are made, the same.
        kept: where copies lie, if anywhere. Those of a group are made when the next is asked for.
        group: what SAEs of one group have in common.

    Yields:
        Params, `cfg.json` and files of each SAE of a group, and how many SAEs are done by then.
    """
    groups: dict[Hashable, list[tuple[P, Path, dict[str, Path]]]] = {}
    copies, done = dict[Path, Copies](), 0
    for params in each:
        own = params.keys.model_dump()
        config = Path(sae.format(**own))
        files = {name: Path(path.format(**own)) for name, path in outputs.items()}
        if kept and config.is_file():
            copies[config] = kept.copies(params, config)
            if copies[config].take(files):
                log.info("%s: made before, its files are copied", config.parent)
                done += 1
                continue
        groups.setdefault(group(params), []).append((params, config, files))
    for members in groups.values():
        yield members, done
        done += len(members)
        for _, config, files in members:
            if config in copies:
                copies[config].keep(files)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
