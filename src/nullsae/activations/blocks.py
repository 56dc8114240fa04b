"""The stream of activations that SAEs are trained on, in blocks that fit into memory.

A block is a shard of `sae_train`: consecutive contexts, tokens permuted within it. Blocks come in
an order drawn anew for each epoch; the first epoch trusts the permutation within them, later ones
permute again. Order and permutations depend on the config's seed alone: SAEs differ by what they
see, not by when they see it, and any of them can be trained together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nullsae.activations.store import SiteReader
from nullsae.randomness import torch_generator


class Blocks(Protocol):
    """Where blocks come from: read from disk, or computed."""

    @property
    def sizes(self) -> list[int]:
        """Tokens in each block."""

    def block(self, index: int, sites: Collection[str]) -> dict[str, Tensor]:
        """Activations of one block at some sites, each [n, d_model], the same tokens in each."""


@dataclass(frozen=True)
class CachedBlocks:
    """Blocks read from the shards of captured sites."""

    readers: dict[str, SiteReader]

    @property
    def sizes(self) -> list[int]:
        """Tokens in each shard, the same at every site."""
        reader = next(iter(self.readers.values()))
        return [int(shard["n_tokens"]) for shard in reader.manifest["shards"]]

    def block(self, index: int, sites: Collection[str]) -> dict[str, Tensor]:
        """One shard of each of these sites, as stored."""
        return {site: self.readers[site].shard(index)[0] for site in sites}


def block_order(seed: int, epoch: int, n_blocks: int) -> list[int]:
    """The order of the blocks in an epoch."""
    generator = torch_generator(seed, "block_order", epoch)
    order: list[int] = torch.randperm(n_blocks, generator=generator).tolist()
    return order


def order_within(seed: int, epoch: int, index: int, n_tokens: int) -> Tensor | slice:
    """Which row of a block stands where in an epoch; as it is in the first."""
    if epoch == 0:
        return slice(None)
    generator = torch_generator(seed, "order_within_block", epoch, index)
    return torch.randperm(n_tokens, generator=generator)


class Batches:
    """Cuts the stream of blocks into one SAE's batches, from some step on.

    A rest of less than a batch is left out at the end of an epoch.
    """

    def __init__(self, n_tokens: int, batch_tokens: int, *, start_step: int) -> None:
        self.batch_tokens = batch_tokens
        self.per_epoch = n_tokens // batch_tokens
        self.epoch, done = divmod(start_step, self.per_epoch)
        # Tokens of this epoch that were handed out or are held.
        self.taken = done * batch_tokens
        self.held: Tensor | None = None

    def want(self, epoch: int, start: int, stop: int) -> bool:
        """Whether any of the tokens `start` ... `stop` of the epoch are still to come."""
        usable = self.per_epoch * self.batch_tokens
        return epoch == self.epoch and start < usable and stop > self.taken

    def cut(self, epoch: int, start: int, x: Tensor) -> Iterator[Tensor]:
        """Whole batches that a block completes.

        Args:
            epoch: of the block.
            start: tokens of the epoch before the block.
            x: the block, [n, d_model].
        """
        assert epoch == self.epoch
        usable = self.per_epoch * self.batch_tokens
        x = x[self.taken - start : usable - start]
        self.taken += len(x)
        held = x if self.held is None else torch.cat([self.held, x])
        n = len(held) // self.batch_tokens * self.batch_tokens
        self.held = held[n:]
        if self.taken == usable:
            self.epoch, self.taken, self.held = epoch + 1, 0, None
        if n:  # torch.split makes one empty batch of no rows
            yield from torch.split(held[:n], self.batch_tokens)
