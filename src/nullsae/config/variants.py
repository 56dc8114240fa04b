"""Gaussian data: whose mean and covariance they have, and the names of what is fitted to whom.

The variant `gaussian` has the moments of the trained variant. A floor, `gaussian@V`, has those of
another variant V: it is no variant of a study, but what SAEs on V's activations are measured
against.
"""

from __future__ import annotations

from typing import Literal

from nullsae.config.saes import AT

GAUSSIAN = "gaussian"
FLOOR_PREFIX = GAUSSIAN + AT
FloorName = Literal[
    "gaussian@trained",
    "gaussian@step0",
    "gaussian@fresh_init",
    "gaussian@rerandomized",
    "gaussian@rerandomized_keep_embeddings",
    "gaussian@permuted_weights",
    "gaussian@spectrum_matched",
    "gaussian@cascade",
    "gaussian@permuted_embeddings",
    "gaussian@rotated_embeddings",
    "gaussian@noise_embeddings",
]


def floor_name(variant: str) -> str:
    """The name that stands for a variant in the paths and tables of its floor."""
    return FLOOR_PREFIX + variant


def is_floor(variant: str) -> bool:
    """Whether this is the name of a floor; `gaussian` is a variant of its own."""
    return variant.startswith(FLOOR_PREFIX)


def fitted_to(variant: str, draw: int) -> tuple[str, int] | None:
    """Variant and draw whose activations Gaussian ones are fitted to; None for what is captured.

    The draws of `gaussian` are independent samples of one fit, since `trained` has one draw. A
    draw of a floor is fitted to the same draw of its variant.
    """
    if variant == GAUSSIAN:
        return "trained", 0
    if is_floor(variant):
        return variant.removeprefix(FLOOR_PREFIX), draw
    return None


VariantName = Literal[
    "trained",
    "step0",
    "fresh_init",
    "rerandomized",
    "rerandomized_keep_embeddings",
    "permuted_weights",
    "spectrum_matched",
    "cascade",
    "permuted_embeddings",
    "rotated_embeddings",
    "noise_embeddings",
    "gaussian",
]
# Variants that are as they are: of the others, `draws` says how many independent ones are made.
FIXED_VARIANTS = ("trained", "step0")
# Variants in which norm parameters are drawn or kept, as `randomization.norm_parameters` says.
NORM_POLICY_VARIANTS = (
    "rerandomized",
    "rerandomized_keep_embeddings",
    "permuted_weights",
    "spectrum_matched",
    "cascade",
)
