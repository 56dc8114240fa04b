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
    whole contexts spread evenly over the split."""
    cross_tokens: PositiveInt | None = None
    """Tokens of `eval` on which each SAE is also evaluated on the other variants' activations
    (table `cross_evaluation`); null for none."""
    matching_latents: PositiveInt = 2048
    """Latents of an SAE, drawn at random, that are matched one to one with all those of another
    (table `overlap`); SAEs with no more are matched whole."""
    gaussian_floors: bool = False
    """Train each recipe also on Gaussian data with the mean and covariance of each variant's own
    activations (`gaussian@variant` in the tables): what an SAE explains beyond its floor is not
    explained by the covariance. Not for `token_lookup`, `pretrained` and what is made from another
    SAE."""
    null_dictionaries: Annotated[tuple[OneOfNulls, ...], AfterValidator(unique)] = ()
    """Dictionaries made without training that stand beside each learned SAE of `trained`, at the
    last site of each subject: its SAE `topk` gets `topk.pca` and so on. Those with a k take the
    SAE's, and are left out where it has none."""
