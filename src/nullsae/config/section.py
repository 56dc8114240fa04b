"""What all sections of the config share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

FloatType = Literal["float32", "bfloat16", "float16"]
T = TypeVar("T")


class Section(BaseModel):
    """Base of all config sections."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """The keys that sections of this kind may have, with their types and defaults."""
        return cls.model_fields


@dataclass(frozen=True)
class OneOf:
    """Annotation of a text that must be one of some names; as `Literal`, but looked up at use."""

    names: Callable[[], Iterable[str]]

    def _check(self, value: Any) -> str:
        names = [*self.names()]
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


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values as they are.

    Raises:
        ValueError: one stands there twice.
    """
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        raise ValueError(f"{sorted(map(str, repeated))[0]!r} is named twice")
    return values


Share = Annotated[float, Field(gt=0, lt=1)]
