"""What all sections of the config share."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.annotated_handlers import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from nullsae.core.registry import Registry

FloatType = Literal["float32", "bfloat16", "float16"]
T = TypeVar("T")
# Tags of sections among what a key may be beside them, such as a text.
SECTION, OTHER_SECTION = "section", "other section"


class Section(BaseModel):
    """Base of all config sections."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # Kinds that other packages define are looked up at the first use, not at the import.
        defer_build=True,
    )

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """The keys that sections of this kind may have, with their types and defaults."""
        return cls.model_fields


@dataclass(frozen=True)
class OneOf:
    """Annotation of a text that must be one of some names; as `Literal`, but looked up at use."""

    names: Callable[[], Collection[str]]

    def _check(self, value: Any) -> str:
        names = self.names()
        if not isinstance(value, str) or value not in names:
            *others, last = map(repr, names)
            expected = f"{', '.join(others)} or {last}" if others else last
            raise PydanticKnownError("literal_error", {"expected": expected})
        return value

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*self.names()], "type": "string"}


@dataclass(frozen=True)
class Trusted:
    """Annotation of a key that makes code of somebody's choice run, or sends secrets away.

    Nobody can check such a value but the person whose config it is: `nullsae plan` names it.
    """

    does: str
    """What happens because of it, from `jobs ...`."""


class Kind(Section):
    """A section whose key `kind` says which of the classes of a registry it is.

    A class holds all that a study knows of its kind. Its field `kind` is a `Literal` of `name`.
    """

    name: ClassVar[str]
    shown_first: ClassVar[bool] = False
    """Whether the page prefers it where it shows one of several."""

    @property
    def text(self) -> str:
        """What it does, for the page's list of controls: one sentence or two."""
        raise NotImplementedError(f"{type(self).__name__}.text")

    def own_files(self, keys: Mapping[str, str]) -> tuple[str, ...]:
        """Files and folders of the user's that a job about a cell reads; an edit runs it again.

        Raises:
            UserError: one is missing that only this cell has.
        """
        prompt = getattr(self, "prompt", None)
        return (prompt,) if prompt else ()


class Choice:
    """Annotates the base class of a registry: a value is a section of one of its classes."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def all(self) -> tuple[type[Section], ...]:
        """The classes that there are to choose from."""
        return tuple(self.registry.values())

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union: Any = reduce(or_, self.all())
        return handler.generate_schema(Annotated[union, Field(discriminator="kind")])


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values as they are.

    Raises:
        ValueError: one stands there twice.
    """
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"{sorted(map(str, repeated))[0]!r} is named twice")
    return values


def drop_if_null(*keys: str) -> Any:
    """A serializer that leaves keys out where they are null.

    Params of jobs that do not use one are then as they were before there was such a key.
    """

    def dumped(self: Section, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        return {name: x for name, x in found.items() if name not in keys or x is not None}

    return model_serializer(mode="wrap")(dumped)


def without_nulls(entries: Any) -> Any:
    """An overlay drops an entry by setting it to null: as if it never stood there."""
    if not isinstance(entries, dict):
        return entries
    return {name: entry for name, entry in entries.items() if entry is not None}


def fit_into_paths(marks: str) -> Callable[[dict[str, T]], dict[str, T]]:
    """A check that names consist of letters, digits and these marks: they become folders."""

    def check(entries: dict[str, T]) -> dict[str, T]:
        for name in entries:
            if not re.fullmatch(f"[A-Za-z0-9][A-Za-z0-9{marks}]*", name):
                allowed = f"letters, digits, {', '.join(map(repr, marks))}"
                raise ValueError(f"{name!r} is not a name; use {allowed}: it becomes a folder")
        return entries

    return check


Share = Annotated[float, Field(gt=0, lt=1)]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(unique)]
