"""The base of dictionaries that are made from another SAE of the config."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, PositiveInt

from nullsae.config.dictionaries import Dictionary


class Derived(Dictionary):
    """A dictionary made from an SAE and a sample of activations, without training."""

    model_config = ConfigDict(populate_by_name=True)

    trained: ClassVar[bool] = False
    derived: ClassVar[bool] = True

    made_from: Annotated[str | None, Field(alias="from")] = None
    """For a dictionary derived from another SAE: the learned or pretrained SAE of `saes`."""
    sample_tokens: PositiveInt = 65_536
    """Tokens of `sae_train` that give the means, covariances and firing rates of such a
    dictionary."""

    @property
    def sampled(self) -> int:
        return self.sample_tokens

    @property
    def source(self) -> str | None:
        return self.made_from

    @property
    def has_floor(self) -> bool:
        """It is itself a floor."""
        return False

    def check(self, k: int | None) -> None:
        if self.made_from is None:
            raise ValueError(
                f"from: missing; name the SAE of saes that dictionary {self.name!r} is made from"
            )
        if k is not None:
            raise ValueError(
                f"k: dictionary {self.name!r} is as active as the SAE that it is made from: drop k"
            )

    def width(self, d_model: int, vocab_size: int | None) -> int | None:
        """Return the width of its source."""
        return None
