"""Randomized weights: each tensor is drawn on the CPU in float32 from its own keyed generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nullsae.randomness import torch_generator


def embedding_parameters(model: Any) -> set[str]:
    """Names of the parameters of the input and output embeddings, tied or not."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    owned = {id(p) for module in modules if module is not None for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in owned}


def norm_parameters(model: Any) -> set[str]:
    """Names of the gains and biases of normalization layers."""
    return {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, _ in module.named_parameters(recurse=False)
    }


def parameters_to_redraw(model: Any, variant: str, norm_policy: str | None) -> set[str]:
    """Names of the parameters that a `rerandomized*` variant draws anew.

    Tied tensors appear once in `named_parameters`, so they are drawn once.
    """
    names = {name for name, _ in model.named_parameters()}
    if variant == "rerandomized_keep_embeddings":
        names -= embedding_parameters(model)
    if norm_policy == "keep":
        names -= norm_parameters(model)
    return names


def redraw(tensor: Tensor, name: str, *, seed: int, subject: str, draw: int) -> Tensor:
    """Independent normals with the tensor's own mean and variance (Heap et al. 2025, section 3).

    Args:
        tensor: any shape and floating dtype.
        name: the parameter's name, part of the generator's key.
        seed: the config's seed.
        subject: name of the subject.
        draw: index of the randomization.

    Returns:
        A tensor of the same shape and dtype; a constant tensor comes back as it is.
    """
    values = tensor.detach().to("cpu", torch.float32)
    mean, std = values.double().mean(), values.double().std(correction=0)
    generator = torch_generator(seed, "rerandomize", subject, draw, name)
    drawn = torch.randn(values.shape, generator=generator) * std.float() + mean.float()
    return drawn.to(tensor.dtype)


def rerandomize(
    model: Any, variant: str, norm_policy: str | None, *, seed: int, subject: str, draw: int
) -> set[str]:
    """Redraw a model's weights in place; returns the names of the tensors that were drawn."""
    names = parameters_to_redraw(model, variant, norm_policy)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.copy_(redraw(parameter, name, seed=seed, subject=subject, draw=draw))
    return names
