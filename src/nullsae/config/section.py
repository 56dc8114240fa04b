"""What all sections of the config share."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

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
