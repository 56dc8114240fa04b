"""Config key `compute`: threads, device and precision."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PositiveInt,
    model_validator,
)

from nullsae.config.section import Section

Precise = Literal["float32", "tf32", "bfloat16"]
Precision = Literal["auto", Precise]
DEVICES = ("auto", "cpu", "mps", "cuda", "cuda:N")
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")


def _device(name: str) -> str:
    if not DEVICE.fullmatch(name):
        raise ValueError(f"{name!r} is not one of {', '.join(DEVICES)}")
    return name


class Compute(Section):
    """Settings of every numerical job."""

    threads: PositiveInt = 1
    """CPU threads of each numerical job. Rounding depends on them; `--cores` only sets how many
    jobs run at a time."""
    device: Annotated[
        str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^({DEVICE.pattern})$"})
    ] = "auto"
    """`auto` (CUDA if available, else the CPU), `cpu`, `cuda`, `cuda:N`, or `mps` (the GPU of a
    Mac). With `cpu` no job requests a GPU, so as many run at a time as there are cores."""

    @model_validator(mode="wrap")
    @classmethod
    def of_the_key(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        """Take from the config's key only what a job uses."""
        if isinstance(given, Compute) and type(given) is not cls:
            given = {name: getattr(given, name) for name in cls.model_fields}
        return check(given)


class ComputeKey(Compute):
    """The key of the config; only the training of SAEs uses `precision`."""

    precision: Precision = "auto"
    """Precision of the products that select latents while SAEs are trained. With `bfloat16` and
    `tf32`, tensor cores select, and values and gradients of the selected latents are computed in
    float32. `auto` is `bfloat16` on CUDA and `float32` elsewhere. Dense architectures support at
    most `tf32`, or only float32 (docs/training.md)."""


def precision_on(precision: Precision, device: str) -> Precise:
    """Return what `compute.precision` means on a kind of device; only CUDA has TensorFloat-32."""
    if precision == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    return "float32" if precision == "tf32" and device != "cuda" else precision
