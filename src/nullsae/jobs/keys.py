"""What a job is about: the keys in the paths of its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import NonNegativeInt, PositiveInt

from nullsae.config.section import Section
from nullsae.config.toy import ToyData
from nullsae.config.variants import ModelName


class _FromWildcards(Section):
    @classmethod
    def of(cls, wildcards: Mapping[str, str]) -> Self:
        """Take these keys from a job's wildcards, and leave out the others."""
        given = {name: wildcards[name] for name in cls.model_fields}
        return cls.model_validate_strings(given)


class ModelKeys(_FromWildcards):
    """A set of weights, or Gaussian data instead."""

    subject: str
    variant: ModelName
    draw: NonNegativeInt


class SaeKeys(_FromWildcards):
    """An SAE of a model."""

    site: str
    sae: str
    """Key of `saes`; for a checkpoint, followed by `@` and the share of its training."""
    seed: NonNegativeInt


class CellKeys(SaeKeys, ModelKeys):
    """An SAE."""

    @property
    def model(self) -> ModelKeys:
        """The keys of the model that it was trained on."""
        return ModelKeys(subject=self.subject, variant=self.variant, draw=self.draw)

    def parts(self) -> tuple[str | int, ...]:
        """Return the keys in path order, to key a generator."""
        return (self.subject, self.variant, self.draw, self.site, self.sae, self.seed)


class ToyKeys(_FromWildcards):
    """A sweep of toy models."""

    source: str
    data: ToyData
    expansion: PositiveInt
    seed: NonNegativeInt
