"""One SAE for all variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.sae.dictionaries.derived import Derived
from nullsae.sae.later import Autoencoder, Tensor


class Given(Derived):
    """The trained subject's SAE itself, on the activations of every variant; not a null."""

    name, position = "given", 11
    summary = "is one SAE for all variants: that of the trained one, or a pretrained one"
    caption = "The trained variant's SAE of {made_from}, on the activations of every variant."
    is_null, takes_pretrained = False, True

    def check(self, k: int | None) -> None:
        if self.made_from is None:
            raise ValueError("dictionary 'given': from or pretrained is missing; name its SAE")
        super().check(k)

    def source_keys(self, keys: Mapping[str, str]) -> dict[str, str]:
        return {"subject": keys["subject"], "variant": "trained", "draw": "0"}

    def derive(
        self, sae: Autoencoder, sample: Tensor, generator: Any
    ) -> tuple[Autoencoder, list[Any]]:
        return sae, []
