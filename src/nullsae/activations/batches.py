"""Batches of one size from shards of any, and what makes shards that are not on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Live(Protocol):
    """What makes the activations of a split again that are not kept."""

    def rows(self, index: int, sites: Sequence[str]) -> dict[str, Tensor]:
        """Of one shard, in its order: per site [n, width] in the storage type."""


class Batcher:
    """Cuts parts of shards into batches of one size, whatever the size of the parts."""

    def __init__(self, size: int) -> None:
        self.size, self.lacking = size, size
        self.held: list[tuple[Tensor, Tensor]] = []

    def cut(self, x: Tensor, position: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches that these rows complete: (float32 [size, d_model], int64 [size])."""
        while len(x):
            self.held.append((x[: self.lacking], position[: self.lacking]))
            x, position = x[self.lacking :], position[self.lacking :]
            self.lacking -= len(self.held[-1][1])
            if not self.lacking:
                yield _joined(self.held)
                self.held, self.lacking = [], self.size

    def rest(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left, less than a batch."""
        if self.held:
            yield _joined(self.held)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate parts of shards, activations as float32."""
    if len(parts) == 1:
        return parts[0][0].float(), parts[0][1]
    return torch.cat([x for x, _ in parts]).float(), torch.cat([at for _, at in parts])
