"""A variant: weights redrawn from a distribution without tails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nullsae.config.randomization import Settings
from nullsae.config.variants import Look, Variant
from nullsae.core.registry import lazy
from nullsae.subjects.changes import Change, Redrawn, change_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")  # a config that names this variant is parsed without it


class Uniform(Redrawn):
    """Independent uniforms with the tensor's own mean and variance; the gate is `Redrawn`'s."""

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        values = tensor.double()
        drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64) - 0.5
        scale = values.std(correction=0) * 12**0.5
        return (drawn * scale + values.mean()).to(tensor.dtype)


class UniformWeights(Variant):
    """As `rerandomized`, without large weights."""

    name = "uniform_weights"
    group = "redrawn weights"
    text = "Each tensor is redrawn from a uniform distribution with its own mean and variance."
    look = Look("#7a3b00", "#d08a4a", "square", (5, 1))
    reads = ("norm_parameters",)

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        return change_weights(model, settings, Uniform())
