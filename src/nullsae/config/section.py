"""Base classes and annotations of all sections of the config."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from itertools import pairwise
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
# Of a name in a path; file systems allow 255 bytes, key included.
MOST_CHARACTERS = 100
# Tags of sections in unions with other types, such as text.
SECTION, OTHER_SECTION = "section", "other section"


class Section(BaseModel):
    """Base of all config sections."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        # Kinds of other packages are looked up at first use, not at import.
        defer_build=True,
    )

    described_by: ClassVar[tuple[type[Section], ...]]
    """The sections whose keys one made by `create_model` has."""

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """Return the keys that sections of this kind may have, with their types and defaults."""
        return cls.model_fields

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """Return each key's `description`, or else the docstring below it in its class.

        Looked up on demand: pydantic's `use_attribute_docstrings` does it in each process, which
        took a quarter of the time of parsing a config.
        """
        found: dict[str, str] = {}
        for section in vars(cls).get("described_by", ()):
            found |= section.descriptions()
        for base in reversed(cls.__mro__):
            if issubclass(base, Section) and "described_by" not in vars(base):
                found |= _texts_below_keys(base)
        given = {name: field.description for name, field in cls.model_fields.items()}
        return found | {name: text for name, text in given.items() if text is not None}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(schema)
        keys = handler.resolve_ref_schema(found).get("properties", {})
        texts = cls.descriptions()
        for name, field in cls.model_fields.items():
            key = field.alias or name
            if key in keys and name in texts:
                keys[key]["description"] = texts[name]
        return found


@cache
def _texts_below_keys(section: type[Section]) -> dict[str, str]:
    """Return the docstrings below annotated names in the body of a class."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[section.__module__]))
    except (OSError, TypeError):  # typed in a shell
        return {}
    found = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ClassDef) and node.name == section.__name__):
            continue
        for key, text in pairwise(node.body):
            match key, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(said))):
                    found[name] = inspect.cleandoc(said)
    return found


@dataclass(frozen=True)
class OneOf:
    """Annotates a text that must be one of some names, like `Literal` but looked up at use."""

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
    """Annotates a key that makes jobs run code named by the config, or send secrets.

    Only the user can check such a value, so `nullsae plan` names it.
    """

    does: str
    """What it makes jobs do, beginning with `jobs`."""


class Kind(Section):
    """A section whose key `kind` names its class in a registry.

    The class is all that a study knows of the kind. Its field `kind` is a `Literal` of `name`.
    """

    name: ClassVar[str]
    shown_first: ClassVar[bool] = False
    """Whether the page prefers it if it shows only one of several."""

    @property
    def text(self) -> str:
        """What it does, in one or two sentences, for the page's list of controls."""
        raise NotImplementedError(f"{type(self).__name__}.text")

    def own_files(self, keys: Mapping[str, str]) -> tuple[str, ...]:
        """Return the user's files and folders that a job of a cell reads; edits run it again.

        Raises:
            UserError: a file of this cell is missing.
        """
        prompt = getattr(self, "prompt", None)
        return (prompt,) if prompt else ()


class Choice:
    """Annotates the base class of a registry: a value is an instance of one of its classes."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def all(self) -> tuple[type[Section], ...]:
        """Return the classes to choose from."""
        return tuple(self.registry.values())

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union: Any = reduce(or_, self.all())
        return handler.generate_schema(Annotated[union, Field(discriminator="kind")])


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return the values unchanged.

    Raises:
        ValueError: a value occurs twice.
    """
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"{sorted(map(str, repeated))[0]!r} is named twice")
    return values


def drop_if_null(*keys: str) -> Any:
    """Return a serializer that leaves keys out if they are null.

    The params of jobs that do not use a key then stay as they were before the key existed.
    """

    def dumped(self: Section, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        return {name: x for name, x in found.items() if name not in keys or x is not None}

    return model_serializer(mode="wrap")(dumped)


def without_nulls(entries: Any) -> Any:
    """Remove entries that are null, by which an overlay drops them."""
    if not isinstance(entries, dict):
        return entries
    return {name: entry for name, entry in entries.items() if entry is not None}


def fit_into_paths(marks: str) -> Callable[[dict[str, T]], dict[str, T]]:
    """Return a check that names, which become folders, have only letters, digits and marks."""

    def check(entries: dict[str, T]) -> dict[str, T]:
        for name in entries:
            if not re.fullmatch(f"[A-Za-z0-9][A-Za-z0-9{marks}]*", name):
                allowed = f"letters, digits, {', '.join(map(repr, marks))}"
                raise ValueError(f"{name!r} is not a name; use {allowed}: it becomes a folder")
            if len(name) > MOST_CHARACTERS:
                raise ValueError(
                    f"{name[:20] + '...'!r} has {len(name)} characters; use at most "
                    f"{MOST_CHARACTERS}: it becomes a folder"
                )
        return entries

    return check


Share = Annotated[float, Field(gt=0, lt=1)]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(unique)]
