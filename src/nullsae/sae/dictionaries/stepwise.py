"""Dictionaries made by gradient steps; the nulls keep a part at its random start.

Korznikov et al. 2026, arXiv 2602.14111.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nullsae.config.dictionaries import Dictionary
from nullsae.sae.later import F, Tensor, torch


class Learned(Dictionary):
    """A fully trained SAE."""

    name, position = "learned", 1
    summary = "is trained"
    caption = "Encoder and decoder are trained."
    is_null, takes_pretrained = False, True


class FrozenDecoder(Dictionary):
    """Random decoder rows, with a trained encoder."""

    name, position = "frozen_decoder", 2
    summary = "keeps the decoder at its random start"
    caption = "The decoder stays at its random start; the encoder is trained."
    frozen = ("W_dec",)


class SoftFrozenDecoder(Dictionary):
    """Decoder rows that stay near their random start."""

    name, position = "soft_frozen_decoder", 3
    summary = "keeps the decoder near it"
    caption = (
        "Both are trained, but each decoder row stays near its random start (cosine at least "
        "{min_decoder_cosine:g})."
    )
    held = True

    min_decoder_cosine: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """`soft_frozen_decoder` keeps each decoder row at least this close to its random start."""

    def hold(self, rows: Tensor, start: Tensor) -> Tensor:
        return keep_close(rows, start, self.min_decoder_cosine)


class FrozenEncoder(Dictionary):
    """A random encoder, with a trained decoder.

    b_dec is part of the encoder too, which subtracts it.
    """

    name, position = "frozen_encoder", 4
    summary = "keeps the encoder at its random start"
    caption = "The encoder stays at its random start; the decoder is trained."
    frozen = ("encoder.weight", "encoder.bias", "b_dec")


def keep_close(rows: Tensor, start: Tensor, min_cosine: float) -> Tensor:
    """Return the unit rows nearest to `rows` with a cosine of `min_cosine` or more to `start`.

    Rows within that cone are unchanged. Others move to the cone's edge, in the plane of the row and
    its start: c r0 + sqrt(1 - c^2) u, where u is the unit part of the row orthogonal to r0. Rows
    and start are [n, d], of unit norm; c is `min_cosine`, between 0 and 1.
    """
    cosine = (rows * start).sum(dim=1, keepdim=True)
    across = F.normalize(rows - cosine * start, dim=1)
    # Twice, because near the opposite of a start the orthogonal part is mostly rounding. Such a row
    # may land within the cone, but never outside.
    across = across - (across * start).sum(dim=1, keepdim=True) * start
    edge = F.normalize(min_cosine * start + (1.0 - min_cosine**2) ** 0.5 * across, dim=1)
    return torch.where(cosine >= min_cosine, rows, edge)
