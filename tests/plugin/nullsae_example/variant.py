"""A variant: weights redrawn from a distribution without tails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nullsae.core.registry import lazy
from nullsae.subjects.changes import Redrawn, WeightsVariant

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


class UniformWeights(WeightsVariant):
    """As `rerandomized`, without large weights."""

    name = "uniform_weights"
    group = "redrawn weights"
    text = "Each tensor is redrawn from a uniform distribution with its own mean and variance."
    matrix = Uniform()
