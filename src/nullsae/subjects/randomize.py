"""Randomized weights: each tensor is drawn on the CPU from its own keyed generator."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nullsae.core.randomness import seed_of, torch_generator
from nullsae.subjects.families import find_blocks
from nullsae.subjects.orthogonal import haar_frame, with_spectrum_of

# What happens to a tensor; the gates that it must pass follow from it.
Change = Literal["redrawn", "initialized", "permuted", "matched", "rows", "rotated"]
# The purpose that keys the generators of each random variant. The two rerandomizations share
# theirs: they differ in the embeddings only.
PURPOSES = {
    "fresh_init": "fresh_init",
    "rerandomized": "rerandomize",
    "rerandomized_keep_embeddings": "rerandomize",
    "permuted_weights": "permute_weights",
    "spectrum_matched": "match_spectrum",
    "cascade": "cascade",
    "permuted_embeddings": "permute_embeddings",
    "rotated_embeddings": "rotate_embeddings",
}


def embedding_parameters(model: Any) -> set[str]:
    """Names of the parameters of the input and output embeddings, tied or not.

    Learned positions (GPT-2, OPT) are part of the input embedding: every lookup table outside the
    blocks counts. The paper's code skips names with "embed", which says the same of Pythia and OPT.
    """
    inside = {id(module) for block in find_blocks(model) for module in block.modules()}
    modules = [m for m in model.modules() if isinstance(m, nn.Embedding) and id(m) not in inside]
    modules += [model.get_input_embeddings(), model.get_output_embeddings()]
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


def block_parameters(model: Any, first: int) -> set[str]:
    """Names of the parameters of block `first` and of all that come after it."""
    owned = {id(p) for block in find_blocks(model)[first:] for p in block.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in owned}


def changes_of(
    model: Any, variant: str, *, norm_policy: str | None = None, first_random_block: int = 0
) -> dict[str, Change]:
    """What a random variant does to which parameters; those it leaves alone are not named.

    Tied tensors appear once in `named_parameters`, so they are drawn once and stay tied.

    Args:
        model: any Hugging Face decoder.
        variant: a key of `PURPOSES`.
        norm_policy: `keep` leaves the gains and biases of normalization layers alone.
        first_random_block: of `cascade`.
    """
    parameters = dict(model.named_parameters())
    if variant in {"permuted_embeddings", "rotated_embeddings"}:
        table = model.get_input_embeddings().weight
        change: Change = "rows" if variant == "permuted_embeddings" else "rotated"
        return {name: change for name, p in parameters.items() if p is table}
    names = set(parameters)
    if variant == "rerandomized_keep_embeddings":
        names -= embedding_parameters(model)
    if variant == "cascade":
        names &= block_parameters(model, first_random_block)
    if norm_policy == "keep":
        names -= norm_parameters(model)
    kinds: dict[str, tuple[Change, Change]] = {  # of vectors, of matrices
        "fresh_init": ("initialized", "initialized"),
        "permuted_weights": ("permuted", "permuted"),
        # A permutation keeps the spectrum of a vector in both readings: its norm, as a column, and
        # the entries of diag(g), as a gain.
        "spectrum_matched": ("permuted", "matched"),
    }
    vector, matrix = kinds.get(variant, ("redrawn", "redrawn"))
    return {name: matrix if parameters[name].ndim > 1 else vector for name in sorted(names)}


def redraw(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Independent normals with the tensor's own mean and variance (Heap et al. 2025, section 3).

    Drawn in float32. A constant tensor comes back as it is.
    """
    values = tensor.to(torch.float32)
    mean, std = values.double().mean(), values.double().std(correction=0)
    drawn = torch.randn(values.shape, generator=generator) * std.float() + mean.float()
    return drawn.to(tensor.dtype)


def permute(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The same entries in random places: the exact marginal distribution is kept."""
    return _shuffled(tensor.flatten(), generator).reshape(tensor.shape)


def _shuffled(units: Tensor, generator: torch.Generator) -> Tensor:
    """What lies along the first dimension, in a random order that changes something if one can.

    Where all entries but one are alike (gains in bfloat16), one order in n is not seen.
    """
    while True:
        drawn = units[torch.randperm(len(units), generator=generator)]
        if not torch.equal(drawn, units) or bool((units == units[:1]).all()):
            return drawn


def match_spectrum(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The same singular values, random singular vectors; of each matrix where several are stacked.

    A fused projection (query, key and value in one tensor) is one matrix.
    """
    matrices = tensor.reshape(-1, *tensor.shape[-2:])
    drawn = [with_spectrum_of(matrix, generator).to(tensor.dtype) for matrix in matrices]
    return torch.stack(drawn).reshape(tensor.shape)


def permute_rows(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The same rows [tokens, d] in random places: every token gets another one's embedding."""
    return _shuffled(tensor, generator)


def rotate(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Rows [tokens, d] times one Haar-random orthogonal matrix [d, d].

    Norms and inner products of the rows are kept, to rounding; their directions are not.
    """
    width = tensor.shape[1]
    return (tensor.double() @ haar_frame(width, width, generator)).to(tensor.dtype)


DRAWS: dict[Change, Callable[[Tensor, torch.Generator], Tensor]] = {
    "redrawn": redraw,
    "permuted": permute,
    "matched": match_spectrum,
    "rows": permute_rows,
    "rotated": rotate,
}


def initial_parameters(model: Any, *, seed: int, subject: str, draw: int) -> dict[str, Tensor]:
    """Parameters that the architecture's own initializer draws, float32 on the CPU, by name.

    As `AutoModelForCausalLM.from_config` would, of the class that the model has: also where that
    comes with the checkpoint.
    """
    config = deepcopy(model.config)  # Transformers writes into what it is given
    # It draws from the global CPU generator; whoever uses that finds it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, PURPOSES["fresh_init"], subject, draw))
        fresh = type(model)(config)
    return {name: p.detach() for name, p in fresh.named_parameters()}


def randomize(
    model: Any,
    variant: str,
    *,
    seed: int,
    subject: str,
    draw: int,
    norm_policy: str | None = None,
    first_random_block: int = 0,
) -> dict[str, Change]:
    """Change a model's weights in place into one draw of a random variant.

    Buffers stay as they are. The draw of a tensor depends on its values, its name and the keys, not
    on its place among the others.

    Args:
        model: any Hugging Face decoder.
        variant: a key of `PURPOSES`.
        seed: the config's seed.
        subject: name of the subject.
        draw: index of the randomization.
        norm_policy: see `changes_of`.
        first_random_block: see `changes_of`.

    Returns:
        What was done to each changed tensor, by its name.
    """
    changes = changes_of(
        model, variant, norm_policy=norm_policy, first_random_block=first_random_block
    )
    fresh = {}
    if variant == "fresh_init":
        fresh = initial_parameters(model, seed=seed, subject=subject, draw=draw)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            change = changes.get(name)
            if change == "initialized":
                parameter.copy_(fresh[name])
            elif change is not None:
                generator = torch_generator(seed, PURPOSES[variant], subject, draw, name)
                parameter.copy_(DRAWS[change](parameter.detach().to("cpu"), generator))
    return changes
