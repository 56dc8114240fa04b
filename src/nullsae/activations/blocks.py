"""The stream of activations that SAEs are trained on, in blocks that fit into memory.

A block is a shard of `sae_train`: consecutive contexts, with tokens permuted within it. The order
of blocks is drawn again for each epoch; the first epoch uses the stored permutation within blocks,
later ones permute again. Order and permutations depend on the config's seed alone: SAEs differ in
what they see, not in when they see it, and any of them can be trained together. A token excluded at
a site is replaced by another one of the block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from nullsae.activations.passes import stored_together
from nullsae.activations.store import SiteReader
from nullsae.core.devices import same_device
from nullsae.core.randomness import torch_generator

T = TypeVar("T")
R = TypeVar("R")


class Blocks(Protocol):
    """A source of blocks: read from disk, or computed."""

    @property
    def sizes(self) -> list[int]:
        """The number of tokens in each block."""

    @property
    def computed(self) -> bool:
        """Whether making a block takes passes of a model or samples, rather than reading."""

    def block(self, index: int, sites: Collection[str]) -> dict[str, Tensor]:
        """Return one block at some sites, each [n, width], with the same tokens at each.

        Activations are in the storage type, on any device, and must not be modified.
        """

    def name(self, index: int, site: str) -> str:
        """Return the name of a site's block, for messages."""

    def work(self, indices: Collection[int]) -> str:
        """Describe the work of getting these blocks."""


@dataclass(frozen=True)
class CachedBlocks:
    """Blocks read from the shards of captured sites."""

    seed: int
    readers: dict[str, SiteReader]

    @property
    def sizes(self) -> list[int]:
        reader = next(iter(self.readers.values()))  # the same at every site
        return [int(shard["n_tokens"]) for shard in reader.manifest["shards"]]

    @property
    def computed(self) -> bool:
        return any(reader.live is not None for reader in self.readers.values())

    def block(self, index: int, sites: Collection[str]) -> dict[str, Tensor]:
        found = {}
        for site, x, _ in stored_together({site: self.readers[site] for site in sites}, index):
            reader = self.readers[site]
            kept, name = reader.kept(index), self.name(index, site)
            found[site] = reader.rule.fill(x, kept, self.seed, index, name)
        return found

    def name(self, index: int, site: str) -> str:
        return str(self.readers[site].file(index))

    def work(self, indices: Collection[int]) -> str:
        return f"{len(indices)} blocks read"


def block_order(seed: int, epoch: int, n_blocks: int) -> list[int]:
    """Return the order of the blocks in an epoch."""
    order = torch.randperm(n_blocks, generator=torch_generator(seed, "block_order", epoch))
    return order.tolist()


def order_within(seed: int, epoch: int, index: int, n_tokens: int) -> Tensor | slice:
    """Return the order of a block's rows in an epoch, int64 [n_tokens]; the first keeps them."""
    if epoch == 0:
        return slice(None)
    generator = torch_generator(seed, "order_within_block", epoch, index)
    return torch.randperm(n_tokens, generator=generator)


def ahead(get: Callable[[T], R], items: Iterable[T], *, in_background: bool) -> Iterator[R]:
    """Yield the results of `get`, in order.

    In the background, a thread computes the next one while the caller uses the last, so that two
    are in memory.
    """
    if not in_background:
        yield from map(get, items)
        return
    with ThreadPoolExecutor(1, initializer=same_device()) as pool:
        coming: deque[Future[R]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(get, item))
                if len(coming) > 1:
                    yield coming.popleft().result()
            if coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class Batches:
    """Cuts the stream of blocks into one SAE's batches, from a given step on.

    At the end of an epoch, a remainder of less than a batch is dropped.
    """

    def __init__(self, n_tokens: int, batch_tokens: int, *, start_step: int) -> None:
        self.batch_tokens = batch_tokens
        self.per_epoch = n_tokens // batch_tokens
        self.usable = self.per_epoch * batch_tokens
        epoch, done = divmod(start_step, self.per_epoch)
        self.start = (epoch, done * batch_tokens)
        # Tokens of this epoch that were returned or are held.
        self.taken = done * batch_tokens
        self.held: Tensor | None = None

    def want(self, epoch: int, start: int, stop: int) -> bool:
        """Return whether any of the tokens `start` ... `stop` of the epoch are in later batches.

        The answer refers to the first step, so this may be called before the stream starts.
        """
        return start < self.usable and (epoch, stop) > self.start

    def cut(self, start: int, x: Tensor) -> Iterator[Tensor]:
        """Yield the batches that a block x [n, width] completes, as views of it if possible.

        `start` tokens of the epoch precede it; wanted blocks must come in order.
        """
        x = x[self.taken - start : self.usable - start]
        self.taken = (self.taken + len(x)) % self.usable
        if self.held is not None:
            lacking = self.batch_tokens - len(self.held)
            self.held, x = torch.cat([self.held, x[:lacking]]), x[lacking:]
            if len(self.held) < self.batch_tokens:
                return
            yield self.held
        whole = len(x) - len(x) % self.batch_tokens
        # A view would keep the whole block in memory.
        self.held = x[whole:].clone() if whole < len(x) else None
        if whole:  # torch.split returns one empty batch for no rows
            yield from torch.split(x[:whole], self.batch_tokens)
