"""Config key `compute`: threads and device."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from nullsae.config.section import Section


class Compute(Section):
    threads: PositiveInt = 1
    """CPU threads of each numerical job. Rounding depends on it, so it stands here: --cores only
    decides how many jobs run side by side, never what they compute."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """`auto` takes CUDA when there is one; else `cpu`, `cuda` or `cuda:N`. With `cpu` no job asks
    for a GPU, so that as many run side by side as there are cores."""
