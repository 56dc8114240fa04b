"""What can be done to a tensor: each change draws on the CPU and brings its own gate.

Variants' files import this module when a config is parsed, so it loads torch when it computes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from nullsae.config.randomization import Settings
from nullsae.core.randomness import seed_of, torch_generator
from nullsae.core.registry import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nullsae.subjects import families, gates, orthogonal

    State = Mapping[str, Tensor]
else:
    torch, nn = lazy("torch"), lazy("torch.nn")
    families, gates = lazy("nullsae.subjects.families"), lazy("nullsae.subjects.gates")
    orthogonal = lazy("nullsae.subjects.orthogonal")


@dataclass(frozen=True)
class Draw:
    """What keys the random numbers of one draw of a variant."""

    seed: int
    """The config's seed."""
    purpose: str
    subject: str
    draw: int

    def generator(self, name: str) -> torch.Generator:
        """The generator, on the CPU, of the parameter of this name."""
        return torch_generator(self.seed, self.purpose, self.subject, self.draw, name)


class Change:
    """One kind of change to a tensor."""

    by_row: ClassVar[bool] = False
    """Whether it moves or mixes whole rows [tokens, d]; else single entries."""

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """What takes a tensor's place: same shape and dtype, on the CPU."""
        raise NotImplementedError

    def apply(self, model: Any, names: Collection[str], draw: Draw) -> None:
        """Change these parameters of a model in place, without a graph."""
        for name, parameter in model.named_parameters():
            if name in names:
                original = parameter.detach().to("cpu")
                parameter.copy_(self.new(original, draw.generator(name)))

    def gate(
        self,
        before: State,
        after: State,
        names: set[str],
        *,
        model: Any,
        draw: Draw,
    ) -> gates.Gate:
        """Whether the changed tensors kept what they should.

        Args:
            before: the original's parameters by name, on the CPU.
            after: the changed ones.
            names: those that this change was made to.
            model: the changed model.
            draw: what keyed the random numbers.
        """
        raise NotImplementedError

    def limit(self, a: Tensor, b: Tensor) -> float:
        """What chance leaves below |correlation| of a tensor with the original.

        Args:
            a: the original, float64 [n, 1], or [rows, d] if `by_row`; centred, of norm 1.
            b: the changed one, alike.

        Returns:
            By default for n independent units: some standard deviations of 1 / sqrt(n).
        """
        return gates.STANDARD_ERRORS / math.sqrt(len(a))


class Redrawn(Change):
    """Independent normals with the tensor's own mean and variance."""

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        return redraw(tensor, generator)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.moments(before, after, names)


class Initialized(Change):
    """What the architecture's own initializer draws, of the whole model at once."""

    def apply(self, model: Any, names: Collection[str], draw: Draw) -> None:
        fresh = initial_parameters(model, draw)
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.copy_(fresh[name])

    def gate(
        self, before: State, after: State, names: set[str], *, model: Any, draw: Draw
    ) -> gates.Gate:
        other = initial_parameters(model, replace(draw, draw=draw.draw + 1))
        return gates.initializer({name: after[name] for name in names}, other)


class Permuted(Change):
    """The same entries in random places.

    Chance can leave a unit in its place: one that dominates the tensor then makes a correlation of
    its share of the squares, by which the bound is raised.
    """

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        return permute(tensor, generator)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.entries(before, after, names)

    def limit(self, a: Tensor, b: Tensor) -> float:
        return super().limit(a, b) + float(a.norm(dim=1).max() * b.norm(dim=1).max())


class RowsPermuted(Permuted):
    """The same rows in random places: what all rows share stays, and a row is one unit."""

    by_row = True

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        return permute_rows(tensor, generator)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.rows_permuted(before, after, names)


class RowsRotated(Change):
    """All rows turned by one Haar-random rotation Q [d, d].

    With E the centred original and |E| = 1, <E, EQ> has the variance |E^T E|^2 / d.
    """

    by_row = True

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        return rotate(tensor, generator)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.rows_rotated(before, after, names)

    def limit(self, a: Tensor, b: Tensor) -> float:
        return gates.STANDARD_ERRORS * float((a.T @ a).norm()) / math.sqrt(a.shape[1])


class Matched(Change):
    """The same singular values, random singular vectors.

    If one singular value dominates, the correlation has the tail of a product of two normals.
    """

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        return match_spectrum(tensor, generator)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.spectrum(before, after, names)

    def limit(self, a: Tensor, b: Tensor) -> float:
        return gates.PRODUCT_ERRORS / math.sqrt(len(a))


REDRAWN, INITIALIZED, PERMUTED, MATCHED = Redrawn(), Initialized(), Permuted(), Matched()
ROWS_PERMUTED, ROWS_ROTATED = RowsPermuted(), RowsRotated()


def change_weights(
    model: Any,
    settings: Settings,
    matrix: Change,
    *,
    vector: Change | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Change]:
    """The change of each parameter, but of norms' only where the settings do not keep them.

    Args:
        model: any Hugging Face decoder.
        settings: `norm_parameters: keep` leaves gains and biases of normalization layers alone.
        matrix: what is done to a tensor of two or more dimensions.
        vector: what is done to one of one dimension; by default the same.
        names: the parameters that are changed; by default all.
    """
    parameters = dict(model.named_parameters())
    names = set(parameters if names is None else names)
    if settings.norm_parameters == "keep":
        names -= norm_parameters(model)
    return {n: matrix if parameters[n].ndim > 1 else vector or matrix for n in sorted(names)}


def change_embeddings(model: Any, change: Change) -> dict[str, Change]:
    """One change of all tables [tokens, d] that token ids index, and of what is tied to them."""
    tables = {id(module.weight) for module in families.token_tables(model).values()}
    return {name: change for name, p in model.named_parameters() if id(p) in tables}


def embedding_parameters(model: Any) -> set[str]:
    """Names of the parameters of the input and output embeddings, tied or not.

    Learned positions (GPT-2, OPT) are part of the input embedding: every lookup table outside the
    blocks counts. The paper's code skips names with "embed", which says the same of Pythia and OPT.
    """
    inside = {id(module) for block in families.find_blocks(model) for module in block.modules()}
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


def n_blocks(model: Any) -> int:
    """The number of a model's blocks."""
    return len(families.find_blocks(model))


def block_parameters(model: Any, first: int) -> set[str]:
    """Names of the parameters of block `first` and of all that come after it."""
    owned = {id(p) for block in families.find_blocks(model)[first:] for p in block.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in owned}


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
    drawn = [orthogonal.with_spectrum_of(matrix, generator).to(tensor.dtype) for matrix in matrices]
    return torch.stack(drawn).reshape(tensor.shape)


def permute_rows(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The same rows [tokens, d] in random places: every token gets another one's embedding."""
    return _shuffled(tensor, generator)


def rotate(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Rows [tokens, d] times one Haar-random orthogonal matrix [d, d].

    Norms and inner products of the rows are kept, to rounding; their directions are not.
    """
    width = tensor.shape[1]
    return (tensor.double() @ orthogonal.haar_frame(width, width, generator)).to(tensor.dtype)


def initial_parameters(model: Any, draw: Draw) -> dict[str, Tensor]:
    """Parameters that the architecture's own initializer draws, float32 on the CPU, by name.

    As `AutoModelForCausalLM.from_config` would, of the class that the model has: also where that
    comes with the checkpoint.
    """
    config = deepcopy(model.config)  # Transformers writes into what it is given
    # It draws from the global CPU generator; whoever uses that finds it as it was.
    with torch.random.fork_rng(devices=[]):
        key = seed_of(draw.seed, draw.purpose, draw.subject, draw.draw)
        torch.default_generator.manual_seed(key)
        fresh = type(model)(config)
    return {name: p.detach() for name, p in fresh.named_parameters()}
