"""Registries, which find the classes of one kind instead of listing them.

A registry scans the package folder of its kind and the entry points of other packages. It refers to
them by name, so that a module may ask for a class that comes later in the order of imports. It
imports nothing by itself: such files load torch only when they compute.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from nullsae.core.errors import UserError

T = TypeVar("T")


def _place(thing: Any) -> tuple[int, str]:
    return getattr(thing, "position", 1_000), thing.name


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes of one kind by name, in display order."""

    def __init__(self, kind: str, base: type[T], folder: str) -> None:
        """Describe a kind.

        Args:
            kind: plural name, such as `variants`; other packages' group is `nullsae.variants`.
            base: the class that all of them extend. A class counts if its own body sets `name` to
                a text; classes that only share code leave it out. `position` orders them.
            folder: dotted name of the package whose modules define nullsae's own classes.
        """
        self.kind, self.base, self.folder = kind, base, folder

    @property
    def group(self) -> str:
        """The entry-point group for other packages."""
        return f"nullsae.{self.kind}"

    @cached_property
    def _found(self) -> dict[str, type[T]]:
        package = import_module(self.folder)
        own = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
        classes = [t for n in own for t in self._classes(import_module(f"{self.folder}.{n}"))]
        classes += [self._loaded(point) for point in entry_points(group=self.group)]
        found: dict[str, type[T]] = {}
        for thing in sorted(classes, key=_place):
            name = str(thing.name)  # type: ignore[attr-defined]
            if found.setdefault(name, thing) is not thing:
                raise UserError(
                    f"{self.kind}: {name!r} is defined twice, in {found[name].__module__} and in "
                    f"{thing.__module__}; rename one"
                )
        return found

    def _classes(self, module: ModuleType) -> list[type[T]]:
        """Return the classes of this kind that a module itself defines."""
        return [
            thing
            for thing in vars(module).values()
            if inspect.isclass(thing)
            and issubclass(thing, self.base)
            and thing.__module__ == module.__name__
            and isinstance(vars(thing).get("name"), str)
        ]

    def _loaded(self, point: Any) -> type[T]:
        thing = point.load()
        if not (inspect.isclass(thing) and issubclass(thing, self.base)):
            raise UserError(
                f"{point.value}: entry point {point.name!r} of {self.group} is not a subclass of "
                f"{self.base.__module__}.{self.base.__qualname__}"
            )
        return thing

    def __getitem__(self, name: str) -> type[T]:
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        # `name` may be any value of a config, such as a list.
        return isinstance(name, str) and name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def file(self, name: str) -> Path:
        """Return the file that defines a class; the hash of a rule's code covers it."""
        return Path(inspect.getfile(self._found[name]))


class _Lazy(ModuleType):
    """A module that is imported when one of its attributes is first read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def lazy(name: str) -> Any:
    """Return a module that is imported when it is first used.

    Parsing a config must not load torch, but one file may contain a config model and the code that
    computes. Put this under `else` of `if TYPE_CHECKING`, so that type checkers see the real
    import.
    """
    return _Lazy(name)
