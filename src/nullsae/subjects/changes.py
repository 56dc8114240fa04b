"""What can be done to a tensor: each change draws on the CPU and has its own gate.

Variants' files import this module when a config is parsed, so torch is loaded only to compute.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from nullsae.config.randomization import Settings
from nullsae.config.variants import VARIANTS, Variant
from nullsae.core.randomness import seed_of, torch_generator
from nullsae.core.registry import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nullsae.subjects import families, forward_gates, gates

    State = Mapping[str, Tensor]
else:
    torch, nn = lazy("torch"), lazy("torch.nn")
    families, gates = lazy("nullsae.subjects.families"), lazy("nullsae.subjects.gates")
    forward_gates = lazy("nullsae.subjects.forward_gates")


class Draw(NamedTuple):
    """What keys the random numbers of one draw of a variant; `seed` is the config's."""

    seed: int
    purpose: str
    subject: str
    draw: int


class Change:
    """One kind of change to a tensor."""

    by_row: ClassVar[bool] = False
    """Whether it moves or mixes whole rows [tokens, d] rather than single entries."""

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Return a tensor's replacement: same shape and dtype, on the CPU."""
        raise NotImplementedError

    def apply(self, model: Any, names: Collection[str], draw: Draw) -> None:
        """Change these parameters of a model in place, without a graph."""
        for name, parameter in model.named_parameters():
            if name in names:
                original = parameter.detach().to("cpu")
                parameter.copy_(self.new(original, torch_generator(*draw, name)))

    def gate(
        self, before: State, after: State, names: set[str], *, model: Any, draw: Draw
    ) -> gates.Gate:
        """Check that the changed tensors kept what they should.

        Args:
            before: the original's parameters by name, on the CPU.
            after: the changed ones.
            names: those that this change was applied to.
            model: the changed model.
            draw: what keyed the random numbers.
        """
        raise NotImplementedError

    def without_chance(self, model: Any, draw: Draw) -> set[str]:
        """Return the names of tensors that it changes in the same way in every draw."""
        return set()

    def limit(self, a: Tensor, b: Tensor) -> float:
        """Return the bound on |correlation| of a tensor with the original that chance stays below.

        Args:
            a: the original, float64 [n, 1], or [rows, d] if `by_row`; centred, of norm 1.
            b: the changed one, alike.

        Returns:
            By default for n independent units: some standard deviations of 1 / sqrt(n).
        """
        return gates.STANDARD_ERRORS / math.sqrt(len(a))


class Redrawn(Change):
    """Independent normals with the tensor's own mean and variance (Heap et al. 2025, section 3).

    Drawn in float32. A constant tensor is unchanged.
    """

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        values = tensor.to(torch.float32)
        mean, std = values.double().mean(), values.double().std(correction=0)
        drawn = torch.randn(values.shape, generator=generator) * std.float() + mean.float()
        return drawn.to(tensor.dtype)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.moments(before, after, names)


class Initialized(Change):
    """New draws of the architecture's own initializer, for the whole model at once.

    Buffers that are stored with the weights get its values too.
    """

    def apply(self, model: Any, names: Collection[str], draw: Draw) -> None:
        fresh = initial_model(model, draw)
        initial = dict(fresh.named_parameters())
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.copy_(initial[name])
        stored = fresh.state_dict()
        for name, buffer in model.named_buffers():
            if name in stored:
                buffer.copy_(stored[name])

    def gate(
        self, before: State, after: State, names: set[str], *, model: Any, draw: Draw
    ) -> gates.Gate:
        other = initial_parameters(model, draw._replace(draw=draw.draw + 1))
        new = {name: after[name] for name in names}
        again = gates.drawn_again(new, other)
        return gates.initializer(new, other, self.without_chance(model, draw) if again else set())

    def without_chance(self, model: Any, draw: Draw) -> set[str]:
        """Mamba's `A_log`, for example, starts at the logarithms of 1, 2, ..."""
        draws = (draw._replace(draw=draw.draw + n) for n in (1, 2))
        a, b = (gates.fingerprints(initial_parameters(model, one)) for one in draws)
        return {name for name in a if a[name] == b[name]}


class Permuted(Change):
    """The same entries in random places, which keeps the exact marginal distribution.

    Chance can leave a unit in its place. If it dominates the tensor, the correlation is its share
    of the squares, by which the bound is raised.
    """

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        units = tensor if self.by_row else tensor.flatten()
        # If all entries but one are equal (gains in bfloat16), one order in n changes nothing.
        # Orders are drawn until one does, if any can.
        while True:
            drawn = units[torch.randperm(len(units), generator=generator)]
            if not torch.equal(drawn, units) or bool((units == units[:1]).all()):
                return drawn.reshape(tensor.shape)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.entries(before, after, names)

    def limit(self, a: Tensor, b: Tensor) -> float:
        return super().limit(a, b) + float(a.norm(dim=1).max() * b.norm(dim=1).max())


class RowsPermuted(Permuted):
    """The same rows in random places: every token gets another one's embedding.

    What all rows share stays, and a row is one unit.
    """

    by_row = True

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.rows_permuted(before, after, names)


class RowsRotated(Change):
    """All rows turned by one Haar-random rotation Q [d, d].

    Norms and inner products of the rows are kept, to rounding. With E the centred original and
    |E| = 1, <E, EQ> has the variance |E^T E|^2 / d.
    """

    by_row = True

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        width = tensor.shape[1]
        return (tensor.double() @ haar_frame(width, width, generator)).to(tensor.dtype)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.rows_rotated(before, after, names)

    def limit(self, a: Tensor, b: Tensor) -> float:
        return gates.STANDARD_ERRORS * float((a.T @ a).norm()) / math.sqrt(a.shape[1])


class Matched(Change):
    """U diag(s) V^T with the matrix' own singular values s, and U, V Haar-random.

    Applied to each matrix if several are stacked; a fused projection (query, key and value in one
    tensor) is one matrix. If one singular value dominates, the correlation has the tail of a
    product of two normals.
    """

    def new(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        rows, columns = tensor.shape[-2:]
        drawn = []
        for matrix in tensor.reshape(-1, rows, columns):
            # The last bits of a factorization depend on the machine; rounding hides them.
            values = torch.linalg.svdvals(matrix.to(torch.float64))
            u = haar_frame(rows, len(values), generator)
            v = haar_frame(columns, len(values), generator)
            drawn.append(((u * values) @ v.T).to(tensor.dtype))
        return torch.stack(drawn).reshape(tensor.shape)

    def gate(self, before: State, after: State, names: set[str], **_: Any) -> gates.Gate:
        return gates.spectrum(before, after, names)

    def limit(self, a: Tensor, b: Tensor) -> float:
        return gates.PRODUCT_ERRORS / math.sqrt(len(a))


REDRAWN, INITIALIZED, PERMUTED, MATCHED = Redrawn(), Initialized(), Permuted(), Matched()
ROWS_PERMUTED, ROWS_ROTATED = RowsPermuted(), RowsRotated()


class WeightsVariant(Variant):
    """Base of variants that change all weights, and those of norms if the settings say so."""

    reads: ClassVar[tuple[str, ...]] = ("norm_parameters",)
    matrix: ClassVar[Change]
    """Applied to tensors of two or more dimensions."""
    vector: ClassVar[Change | None] = None
    """Applied to tensors of one dimension; by default the same."""

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        return change_weights(model, settings, cls.matrix, vector=cls.vector)


class EmbeddingsVariant(Variant):
    """Base of variants that change all tables indexed by token ids, and what is tied to them."""

    group = "embeddings"
    rows: ClassVar[Change]
    """Applied to the embedding [tokens, d]."""

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        tables = {id(module.weight) for module in families.token_tables(model).values()}
        return {name: cls.rows for name, p in model.named_parameters() if id(p) in tables}

    @classmethod
    def gates(cls, subject: Any, probe: Tensor) -> list[gates.Gate]:
        """Check that only these tables distinguish tokens."""
        return [forward_gates.all_tables(subject, probe)]


def randomize(
    model: Any,
    variant: str,
    settings: Settings | None = None,
    *,
    seed: int,
    subject: str,
    draw: int,
) -> dict[str, Change]:
    """Change a model's weights in place into one draw of a random variant.

    Buffers stay as they are, except under `fresh_init`. The draw of a tensor depends on its values,
    its name and the keys, not on its position among the others.

    Args:
        model: any Hugging Face decoder.
        variant: name of a variant that changes weights.
        settings: the part of `randomization` that it depends on.
        seed: the config's seed.
        subject: name of the subject.
        draw: index of the randomization.

    Returns:
        The change of each changed tensor, by its name.
    """
    changes = dict(VARIANTS[variant].changes(model, settings or Settings()))
    key = draw_of(variant, seed=seed, subject=subject, draw=draw)
    with torch.no_grad():
        for change, names in by_change(changes).items():
            change.apply(model, names, key)
    return changes


def draw_of(variant: str, *, seed: int, subject: str, draw: int) -> Draw:
    """Return what keys the random numbers of one draw of a variant."""
    return Draw(seed, VARIANTS[variant].purpose or variant, subject, draw)


def by_change(changes: Mapping[str, Change]) -> dict[Change, set[str]]:
    """Return the names of the parameters that each change applies to."""
    return {
        change: {name for name, other in changes.items() if other is change}
        for change in dict.fromkeys(changes.values())
    }


def change_weights(
    model: Any,
    settings: Settings,
    matrix: Change,
    *,
    vector: Change | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Change]:
    """Return the change of each parameter, leaving out norms if the settings keep them.

    Args:
        model: any Hugging Face decoder.
        settings: `norm_parameters: keep` leaves gains and biases of normalization layers alone.
        matrix: applied to tensors of two or more dimensions.
        vector: applied to tensors of one dimension; by default the same.
        names: the parameters to change; by default all.
    """
    parameters = dict(model.named_parameters())
    names = set(parameters if names is None else names)
    if settings.norm_parameters == "keep":
        names -= norm_parameters(model)
    return {n: matrix if parameters[n].ndim > 1 else vector or matrix for n in sorted(names)}


def embedding_parameters(model: Any) -> set[str]:
    """Return the names of the parameters of the input and output embeddings, tied or not.

    Learned positions (GPT-2, OPT) are part of the input embedding: every lookup table outside the
    blocks counts. The paper's code skips names with "embed", which is equivalent for Pythia and
    OPT.
    """
    inside = {module for block in families.find_blocks(model) for module in block.modules()}
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m not in inside]
    tables += [model.get_input_embeddings(), model.get_output_embeddings()]
    return _names(model, filter(None, tables))


def block_parameters(model: Any, first: int) -> set[str]:
    """Return the names of the parameters of block `first` and everything after it."""
    return _names(model, families.find_blocks(model)[first:])


def _names(model: Any, modules: Iterable[nn.Module]) -> set[str]:
    owned = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in owned}


def norm_parameters(model: Any) -> set[str]:
    """Return the names of the gains and biases of normalization layers."""
    return {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, _ in module.named_parameters(recurse=False)
    }


def haar_frame(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw orthonormal columns, uniform (Haar) among all such frames; float64 [rows, columns].

    They are the Q of a Gaussian matrix, with the signs that make the diagonal of R positive;
    otherwise the distribution depends on the factorization (Mezzadri 2007, arXiv
    math-ph/0609050). `columns` is at most `rows`; equal numbers give an orthogonal matrix. The
    generator is on the CPU.
    """
    drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    frame: Tensor = q * r.diagonal().sign()
    return frame


def initial_parameters(model: Any, draw: Draw) -> dict[str, Tensor]:
    """Draw parameters by the architecture's own initializer, float32 on the CPU, by name."""
    return {name: p.detach() for name, p in initial_model(model, draw).named_parameters()}


def initial_model(model: Any, draw: Draw) -> nn.Module:
    """Make a model of the same kind by the architecture's own initializer, float32 on the CPU.

    Like `AutoModelForCausalLM.from_config`, but for the model's own class, even if that came with
    the checkpoint.
    """
    config = deepcopy(model.config)  # Transformers writes into its argument
    # It draws from the global CPU generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*draw))
        fresh: nn.Module = type(model)(config)
    return fresh
