"""Checks of what functions are called with; those of scores load no torch."""

from __future__ import annotations

import operator
from typing import Any

from nullsae.core.errors import UserError


def check_model(model: Any, where: str) -> None:
    """Refuse what is no model of Transformers, in a `UserError` that begins with `where`."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{where}: {type(model).__name__} is not a transformers.PreTrainedModel; give the "
            f"model inside it"
        )


def check_sae(sae: Any, where: str) -> None:
    """Refuse what is no SAE as nullsae has it, in a `UserError` that begins with `where`."""
    from nullsae.sae.autoencoder import Autoencoder

    if not isinstance(sae, Autoencoder):
        raise UserError(
            f"{where}: sae: {type(sae).__name__} is not a nullsae.Autoencoder; nullsae.load_sae "
            f"makes one of files and of objects"
        )


def whole(value: Any, where: str, least: int = 0) -> int:
    """A whole number of Python's or NumPy's, such as a seed.

    Raises:
        UserError: it is none, or below `least`; begins with `where`, which names the argument.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise UserError(f"{where}: {value!r} is not a whole number from {least} on")
    return found
