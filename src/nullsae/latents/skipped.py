"""Tokens whose firings do not count: BOS, ends of text, excluded ones, starts of contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from nullsae.config.latents import Latents
from nullsae.core.errors import UserError
from nullsae.latents.split import Split


class Activations(Protocol):
    """The activations of a site: a `SiteReader`, or passes that run on demand."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens that count."""

    @property
    def n_excluded(self) -> int:
        """Number of tokens of the split that do not count."""

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens that count: float32 [n, d_model], positions int64 [n]."""

    def excluded_positions(self) -> Tensor:
        """Return the flat positions of tokens that do not count, int64 [n]."""


@dataclass(frozen=True)
class Skipped:
    """Which tokens of a split do not count, by flat positions."""

    split: Split
    settings: Latents
    excluded: np.ndarray
    """int64 [n], ascending: positions that `activations.exclude` leaves out."""

    @classmethod
    def of(cls, split: Split, settings: Latents, reader: Activations) -> Skipped:
        """Find them from the settings and the activations of a site.

        Raises a `UserError` if ends of documents are to be skipped, but the corpus has none.
        """
        if settings.skip_end_of_text and split.separator_token_id is None:
            raise UserError(
                f"{split.manifest}: has no separator_token_id, which latents.skip_end_of_text "
                f"needs; set corpora.*.separator, or latents.skip_end_of_text to false"
            )
        return cls(split, settings, np.sort(reader.excluded_positions().numpy()))

    def by_settings(self, position: np.ndarray) -> np.ndarray:
        """Mark the positions that `latents.skip_*` names: bool, of the shape of `position`."""
        split, settings = self.split, self.settings
        skip: np.ndarray = position % split.context_tokens < settings.skip_start_tokens
        if settings.skip_end_of_text:
            skip |= split.ids[position] == split.separator_token_id
        if settings.skip_bos:
            skip |= split.is_bos(position)
        return skip

    def at(self, position: np.ndarray) -> np.ndarray:
        """Mark the positions that do not count: bool, of the shape of `position`."""
        place = np.searchsorted(self.excluded, position)
        skip = self.by_settings(position)
        skip |= np.append(self.excluded, -1)[place] == position
        return skip
