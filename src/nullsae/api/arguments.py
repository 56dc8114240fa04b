"""Checks of functions' arguments; those for scores do not load torch."""

from __future__ import annotations

import operator
from typing import Any

from nullsae.core.errors import UserError


def check_model(model: Any, where: str) -> None:
    """Raise a `UserError` that starts with `where` if `model` is not a Transformers model."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{where}: {type(model).__name__} is not a transformers.PreTrainedModel; give the "
            f"model inside it"
        )


def check_sae(sae: Any, where: str) -> None:
    """Raise a `UserError` that starts with `where` if `sae` is not an SAE of nullsae."""
    from nullsae.sae.autoencoder import Autoencoder

    if not isinstance(sae, Autoencoder):
        raise UserError(
            f"{where}: sae: {type(sae).__name__} is not a nullsae.Autoencoder; nullsae.load_sae "
            f"makes one from files or an object"
        )


def whole(value: Any, where: str, least: int = 0) -> int:
    """Return a whole number of Python's or NumPy's, such as a seed, as an `int`.

    Raises:
        UserError: it is not a whole number of at least `least`; starts with `where`, the argument.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise UserError(f"{where}: {value!r} is not a whole number of at least {least}")
    return found
