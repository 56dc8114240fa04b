"""Batches of one size from shards of any size, and the source of shards that are not on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Live(Protocol):
    """Recomputes the activations of a split that are not stored."""

    def rows(self, index: int, sites: Sequence[str]) -> dict[str, Tensor]:
        """Return one shard in its order: per site [n, width] in the storage type."""


class Batcher:
    """Cuts parts of shards into batches of one size, whatever the sizes of the parts."""

    def __init__(self, size: int) -> None:
        self.size, self.lacking = size, size
        self.held: list[tuple[Tensor, ...]] = []

    def cut(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches that these rows complete.

        Rows are activations [n, d] of one or more sites, followed by positions int64 [n]; so are
        batches, with activations in float32.
        """
        while len(rows[-1]):
            self.held.append(tuple(x[: self.lacking] for x in rows))
            rows = tuple(x[self.lacking :] for x in rows)
            self.lacking -= len(self.held[-1][-1])
            if not self.lacking:
                yield _joined(self.held)
                self.held, self.lacking = [], self.size

    def rest(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield what is left, less than a batch."""
        if self.held:
            yield _joined(self.held)


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Concatenate parts of shards, with activations as float32."""
    *sites, position = zip(*parts, strict=True)
    return (*(_whole(x).float() for x in sites), _whole(position))


def _whole(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
