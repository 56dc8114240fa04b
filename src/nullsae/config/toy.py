"""The config section of the toy models of superposition, which `snakemake toy` trains."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from nullsae.config.section import Section, Seeds, fit_into_paths, unique, without_nulls

ToyData = Literal["data", "gaussian", "mlp_of_data", "mlp_of_gaussian"]
"""What SAEs are trained on: a source's own vectors, their Gaussian control, and the output of a
random network on either."""
DATA: tuple[ToyData, ...] = get_args(ToyData)


class SharkeySource(Section):
    """Sums of sparse true features, by the generator of Sharkey, Braun and Millidge (2022)."""

    kind: Literal["sharkey"]
    n_samples: Annotated[int, Field(ge=20)] = 10_000
    d_input: Annotated[int, Field(ge=2)] = 64
    """Dimensions; fewer than `n_true_features` puts them in superposition."""
    n_true_features: PositiveInt = 128
    mean_active: PositiveFloat = 5.0
    """Mean number of true features active in a sample, before probabilities are clipped at 1."""
    probability_exponent: PositiveFloat = 0.99
    """The probability of true feature i (from 0) is raised to the power of this times i, so that
    later ones are rarer."""
    normalize_covariance: bool = True
    """Give the correlated normals unit variance before the normal CDF turns them into
    probabilities; without it, as in the paper, nearly all of these are 0 or 1."""

    @model_validator(mode="after")
    def as_many_can_be_active(self) -> Self:
        if self.mean_active > self.n_true_features:
            raise ValueError(
                f"mean_active {self.mean_active:g} is more than n_true_features "
                f"{self.n_true_features}"
            )
        return self


class WordVectorsSource(Section):
    """Word vectors in a text file in GloVe's format: a word and its numbers on each line."""

    kind: Literal["word_vectors"]
    path: Annotated[str, Field(min_length=1)]
    max_vectors: Annotated[int, Field(ge=20)] | None = None
    """Read only this many, from the start; null for all."""


ToySource = Annotated[SharkeySource | WordVectorsSource, Field(discriminator="kind")]


class ToyTraining(Section):
    """How each SAE is trained."""

    min_l1_coefficient: PositiveFloat = 1e-4
    max_l1_coefficient: PositiveFloat = 1.0
    n_l1_coefficients: Annotated[int, Field(ge=2)] = 13
    """Number of coefficients of mean |code| in the loss, evenly spaced on a log scale."""
    epochs: PositiveInt = 50
    batch_samples: PositiveInt = 256
    lr: PositiveFloat = 1e-3
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the samples to measure SAEs on instead of training them."""

    @model_validator(mode="after")
    def coefficients_rise(self) -> Self:
        if self.max_l1_coefficient <= self.min_l1_coefficient:
            raise ValueError(
                f"max_l1_coefficient {self.max_l1_coefficient:g} is not above "
                f"min_l1_coefficient {self.min_l1_coefficient:g}"
            )
        return self

    @property
    def l1_coefficients(self) -> tuple[float, ...]:
        """All coefficients, rising."""
        low, ratio = self.min_l1_coefficient, self.max_l1_coefficient / self.min_l1_coefficient
        last = self.n_l1_coefficients - 1
        return tuple(low * ratio ** (i / last) for i in range(last + 1))


class Toy(Section):
    """Toy models of superposition: SAEs on vectors whose sparse origin is known or assumed."""

    sources: dict[str, ToySource] = Field(
        default={"sharkey": SharkeySource(kind="sharkey")}, min_length=1
    )
    """Sources of vectors, by names that become folders."""
    gaussian: Literal["matched", "scalar"] = "matched"
    """The control has the mean and covariance of the source's vectors (`matched`), or, as in the
    paper, a single mean and standard deviation for all dimensions (`scalar`)."""
    mlp_hidden_factor: PositiveInt = 4
    """Hidden units of the random network, per dimension."""
    expansion_factors: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 4)
    """Widths of the SAEs as multiples of the number of dimensions."""
    seeds: Seeds = (0, 1, 2)
    """Each seed has its own vectors, network, split and SAEs."""
    training: ToyTraining = ToyTraining()

    _dropped = field_validator("sources", mode="before")(without_nulls)
    _unique = field_validator("expansion_factors")(unique)
    _named = field_validator("sources")(fit_into_paths("_-"))


def toy_cells(toy: Toy) -> Iterator[dict[str, str]]:
    """Yield the keys of every sweep, in display order: source, data, expansion, seed."""
    for values in product(toy.sources, DATA, toy.expansion_factors, toy.seeds):
        yield dict(zip(("source", "data", "expansion", "seed"), map(str, values), strict=True))


def toy_figures(toy: Toy) -> list[str]:
    """Return the names of all figures, without their formats, in display order."""
    names = []
    for name, source in toy.sources.items():
        names += [f"toy.{name}", f"toy.{name}_scalar"]
        if isinstance(source, SharkeySource):
            names.append(f"toy.{name}_mmcs")
    return names
