"""Normalization of each activation before an SAE encodes it, undone after decoding.

An SAE with a normalization sees y = (x - shift) / scale and reconstructs scale * y^ + shift, token
by token. Constant factors are not handled here; they are folded into the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# SAELens' names, plus `centre` for models with centred weights that some SAEs read.
NORMALIZATIONS = ("none", "centre", "layer_norm", "constant_norm_rescale")
# Of SAELens' `layer_norm`, which adds it to the deviation, but not on the way back.
EPSILON = 1e-5


class Normalized(NamedTuple):
    """Activations as an SAE sees them, and the way back."""

    y: Tensor
    """[tokens, d_model]."""
    scale: Tensor
    """[tokens, 1]."""
    shift: Tensor
    """[tokens, 1]."""

    def back(self, y: Tensor) -> Tensor:
        """Convert reconstructions of y to those of x, [tokens, d_model]."""
        return y * self.scale + self.shift


def normalize(kind: str, x: Tensor) -> Normalized:
    """Normalize activations [tokens, d_model] as an SAE of this kind sees them.

    `centre` subtracts the mean of a token's entries, like TransformerLens' `center_writing_weights`
    for a model with LayerNorm. `layer_norm` also divides by their standard deviation (n - 1).
    `constant_norm_rescale` scales each token to the norm sqrt(d_model).
    """
    one, zero = torch.ones_like(x[:, :1]), torch.zeros_like(x[:, :1])
    if kind == "constant_norm_rescale":
        scale = x.norm(dim=1, keepdim=True).clamp_min(1e-30) / x.shape[1] ** 0.5
        return Normalized(x / scale, scale, zero)
    mean = x.mean(dim=1, keepdim=True)
    if kind == "centre":
        return Normalized(x - mean, one, mean)
    assert kind == "layer_norm"
    centred = x - mean
    deviation = centred.std(dim=1, keepdim=True)
    return Normalized(centred / (deviation + EPSILON), deviation, mean)
