"""What all sections of the config share."""

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
# Tags of sections among what a key may be beside them, such as a text.
SECTION, OTHER_SECTION = "section", "other section"


class Section(BaseModel):
    """Base of all config sections."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        # Kinds that other packages define are looked up at the first use, not at the import.
        defer_build=True,
    )

    described_by: ClassVar[tuple[type[Section], ...]]
    """Of a section that is made by `create_model`: those whose keys it has."""

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """The keys that sections of this kind may have, with their types and defaults."""
        return cls.model_fields

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """What is said of each key: its `description`, or else the text below it in its class.

        Looked up where somebody asks: pydantic's `use_attribute_docstrings` does it in each
        process, which took a quarter of the time that it takes to parse a config.
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
    """The texts that stand below annotated names in the body of a class."""
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
