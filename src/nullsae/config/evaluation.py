"""Config key `evaluation`: what SAEs are measured on."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, PositiveInt

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.section import OneOf, Section, unique

OneOfNulls = Annotated[
    str,
    OneOf(lambda: [n for n, kind in DICTIONARIES.items() if kind.is_null and not kind.trained]),
]


class Evaluation(Section):
    fidelity_tokens: PositiveInt = 16_384
    """Tokens of `eval` for cross-entropy and KL with the SAE spliced in (four forward passes), in
    whole contexts evenly spaced over the split."""
    cross_tokens: PositiveInt | None = None
    """Tokens of `eval` on which each SAE is also evaluated with the other variants' activations
    (table `cross_evaluation`); null for none."""
    matching_latents: PositiveInt = 2048
    """Latents of an SAE, drawn at random, to match one to one with all latents of another SAE
    (table `overlap`); smaller SAEs are matched whole."""
    gaussian_floors: bool = False
    """Also train each recipe on Gaussian data with the mean and covariance of each variant's own
    activations (`gaussian@variant` in the tables): covariance does not explain what an SAE explains
    beyond this floor. Not for `token_lookup`, `pretrained` and SAEs made from another SAE."""
    null_dictionaries: Annotated[tuple[OneOfNulls, ...], AfterValidator(unique)] = ()
    """Dictionaries made without training, as nulls of each learned SAE of `trained` at the last
    site of each subject: the SAE `topk` gets `topk.pca` and so on. Those with a k use the SAE's,
    and are left out if it has none."""
