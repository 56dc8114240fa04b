"""Whether a latent, where it fires, raises the logit of the next token.

For a firing at token t, e(v) is the direct effect of a decoder row on the logit of token v
(`subjects.unembedding`). The share of draws v ~ q with e(v) < e(x_{t+1}), counting ties half, is
0.5 if the row does not predict the next token. q is the distribution of next tokens in the split,
or of those that follow the same token x_t. Both are exact: tokens are sorted once for each latent
and counted rather than sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nullsae.latents.split import Split
from nullsae.latents.store import Firings, changes, offsets_of, ranges

# Effects (latents x tokens of the vocabulary) computed by one product; and how many of them, or of
# successors, are ranked together, < 2^22: few on a CPU, to stay in its cache.
PIECE, RANKED = 2**21, {"cpu": 2**18}
PLACE_BITS = 22
# Rounding error of float32 for effects that cancel, as a share of their terms.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Successors:
    """The pairs (token, next token) of a split, both in one context and one document."""

    pair: np.ndarray
    """int32 [n_tokens]: index of the pair that starts at each position; -1 for none."""
    first: np.ndarray
    """int64 [n_pairs], the first token of each kind of pair, ascending."""
    second: np.ndarray
    """int64 [n_pairs], the second, ascending for equal first ones."""
    count: np.ndarray
    """int64 [n_pairs], how often each kind occurs."""

    @classmethod
    def of(cls, split: Split) -> Successors:
        """Count the pairs of a split. Memory: about 40 bytes per token."""
        at = np.arange(split.n_tokens - 1)
        within = (at + 1) % split.context_tokens != 0
        within &= split.document[1:] == split.document[:-1]
        at = at[within]
        kinds = max(split.n_types, 1)
        key = split.ids[at].astype(np.int64) * kinds + split.ids[at + 1]
        found, pair_of, count = np.unique(key, return_inverse=True, return_counts=True)
        pair = np.full(split.n_tokens, -1, dtype=np.int32)
        pair[at] = pair_of
        return cls(pair, found // kinds, found % kinds, count)


class Aurocs(NamedTuple):
    """Means over the firings of some latents, float64 [n]; NaN if no firing has a next token."""

    unigram: np.ndarray
    """Compared with all next tokens of the split."""
    bigram: np.ndarray
    """Compared with those that follow the same token."""


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix, copied on access."""

    matrix: Tensor
    index: np.ndarray
    """int64 [n]."""

    def __getitem__(self, some: slice) -> Tensor:
        return self.matrix[torch.from_numpy(self.index[some])]


def next_token_aurocs(
    rows: Sequence[Tensor | Rows],
    path: Tensor,
    firings: Firings,
    latents: np.ndarray,
    successors: Successors,
) -> list[Aurocs]:
    """Measure how well decoder rows predict the tokens that follow the firings of latents.

    Memory: 4 bytes x `PIECE` for each entry of `rows`; about 250 bytes per item ranked together, or
    50 bytes per firing of one latent.

    Args:
        rows: [n, d_model] each, a row for each of `latents`: its own, or others as placebos.
        path: float32 [vocab, d_model], `subjects.unembedding.direct_path`; its device computes.
        firings: of all latents.
        latents: int64 [n], ascending.
        successors: of the split of the firings.

    Returns:
        One for each entry of `rows`.
    """
    table = _Table.of(successors, len(path), path.device)
    found = [Aurocs(*np.full((2, len(latents)), np.nan)) for _ in rows]
    most, step = RANKED.get(path.device.type, PIECE), max(1, PIECE // len(path))
    for start in range(0, len(latents), step):
        some = slice(start, start + step)
        effects = [_effects(of_latents[some].to(path), path) for of_latents in rows]
        for part in _parts(firings.counts[latents[some]], max(1, most // len(path)), most):
            mine = latents[some][part]
            fired = _Fired.of_latents(firings, mine, successors, path.device)
            total = np.bincount(fired.of.cpu(), fired.n.cpu(), minlength=len(mine))
            known = total > 0
            ranks = [_ranks(own[part]) for own in effects]
            for shares, into in (
                ([_among_all(rank, fired, table) for rank in ranks], 0),
                (_among_successors(ranks, fired, table, most), 1),
            ):
                for one, share in zip(found, shares, strict=True):
                    weighed = (share * fired.n).cpu().numpy()
                    sums = np.bincount(fired.of.cpu(), weighed, minlength=len(mine))
                    one[into][some][part][known] = sums[known] / total[known]
    return found


@dataclass(frozen=True)
class _Table:
    """`Successors` on the device."""

    first: Tensor
    second: Tensor
    count: Tensor
    start: Tensor
    """int64 [vocab + 1]: where the pairs of each first token begin."""
    unigram: Tensor
    """int64 [vocab]: how often each token comes next."""

    @classmethod
    def of(cls, successors: Successors, vocab: int, device: torch.device) -> _Table:
        start = np.searchsorted(successors.first, np.arange(vocab + 1))
        unigram = np.zeros(vocab, dtype=np.int64)
        np.add.at(unigram, successors.second, successors.count)
        arrays = (successors.first, successors.second, successors.count, start, unigram)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


@dataclass(frozen=True)
class _Fired:
    """Kinds of pairs at whose first token some latents fire, by latent, then by kind: int64 [m]."""

    of: Tensor
    """Index of the latent."""
    pair: Tensor
    n: Tensor
    """Firings."""
    begin: Tensor
    """int64 [groups + 1]: where the kinds with one latent and one first token begin."""

    @classmethod
    def of_latents(
        cls, firings: Firings, latents: np.ndarray, successors: Successors, device: torch.device
    ) -> _Fired:
        pairs = [successors.pair[firings.position[firings.of(at)]] for at in latents.tolist()]
        of = np.repeat(np.arange(len(latents)), [len(found) for found in pairs])
        every = np.concatenate([np.empty(0, dtype=np.int32), *pairs])
        kinds = max(1, len(successors.first))
        key, n = np.unique((of * kinds + every)[every >= 0], return_counts=True)
        of, pair = key // kinds, key % kinds
        begin = np.append(np.flatnonzero(changes(of, successors.first[pair])), len(key))
        return cls(*(torch.from_numpy(array).to(device) for array in (of, pair, n, begin)))


def spread_of(effects: Tensor, rows: Tensor, path: Tensor) -> Tensor:
    """Compute standard deviations of effects (rows @ path.T, [n, vocab]): float32 [n].

    The result is 0 if all effects are rounding, i.e. nothing reads the row.
    """
    spread = effects.std(dim=1, correction=0)
    rounding = ROUNDING * path.norm(dim=1).mean() * rows.norm(dim=1)
    return torch.where(spread > rounding, spread, 0.0)


def _parts(counts: np.ndarray, step: int, most: int) -> Iterator[slice]:
    """Yield slices of latents: `step` of them with at most `most` firings (int64 [n]), or one."""
    for first, end in ranges(offsets_of(counts), most):
        for start in range(first, end, step):
            yield slice(start, min(start + step, end))


def _effects(rows: Tensor, path: Tensor) -> Tensor:
    """Compute effects of rows on tokens, float32 [n, vocab]; 0 if nothing reads a row."""
    effects = rows @ path.T
    effects[spread_of(effects, rows, path) == 0] = 0
    return effects


def _ranks(effects: Tensor) -> Tensor:
    """Rank the effects of each row: int64 [n, vocab], equal for ties."""
    values, order = effects.sort(dim=1)
    new = torch.ones_like(order)
    new[:, 1:] = values[:, 1:] != values[:, :-1]
    return torch.empty_like(order).scatter_(1, order, new.cumsum(dim=1) - 1)


def _among_all(rank: Tensor, fired: _Fired, table: _Table) -> Tensor:
    """Return the share of next tokens below each token that follows: float64 [m]."""
    mass = torch.zeros_like(rank).scatter_add_(1, rank, table.unigram.expand_as(rank))
    return _middle(mass)[fired.of, rank[fired.of, table.second[fired.pair]]] / table.unigram.sum()


def _among_successors(
    ranks: Sequence[Tensor], fired: _Fired, table: _Table, most: int
) -> list[Tensor]:
    """Return the same share among tokens that follow the same token, for several rankings.

    At most `RANKED` successors are ranked together.
    """
    leading = fired.begin[:-1]
    of, token = fired.of[leading], table.first[fired.pair[leading]]
    sizes = table.start[token + 1] - table.start[token]
    ends = sizes.cumsum(0).cpu().numpy()
    found = [torch.empty(len(fired.of), dtype=torch.float64, device=of.device) for _ in ranks]
    low, done = 0, 0
    while low < len(ends):
        stop = max(low + 1, int(np.searchsorted(ends, done + most, side="right")))
        groups = slice(low, stop)
        mine = slice(int(fired.begin[low]), int(fired.begin[stop]))
        # Concatenated successors of the groups, and the positions of observed ones among them.
        group = torch.arange(stop - low, device=of.device).repeat_interleave(sizes[groups])
        before = sizes[groups].cumsum(0) - sizes[groups]
        pair = torch.arange(len(group), device=of.device) - before[group]
        pair += table.start[token[groups]][group]
        seen = torch.arange(stop - low, device=of.device).repeat_interleave(
            fired.begin[low + 1 : stop + 1] - fired.begin[low:stop]
        )
        place = fired.pair[mine] - table.start[token[groups]][seen] + before[seen]
        row, successor, count = of[groups][group], table.second[pair], table.count[pair]
        for share, rank in zip(found, ranks, strict=True):
            key = group * rank.shape[1] + rank[row, successor]
            share[mine] = _share_below(key, group, count)[place]
        low, done = stop, int(ends[stop - 1])
    return found


def _share_below(key: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """Return the share of its group's count with a smaller key, plus half of equal: float64 [n].

    Keys of later groups (int64 [n], ascending) are larger.
    """
    place = torch.arange(len(key), device=key.device)
    both = _sorted((key << PLACE_BITS) | place)
    order, key = both & (2**PLACE_BITS - 1), both >> PLACE_BITS
    new = torch.ones_like(key)
    new[1:] = key[1:] != key[:-1]
    tie = torch.empty_like(key).scatter_(0, order, new.cumsum(dim=0) - 1)
    mass = torch.zeros_like(key).scatter_add_(0, tie, count)
    totals = count.new_zeros(int(group[-1]) + 1).scatter_add_(0, group, count)
    before = totals.cumsum(0) - totals
    return (_middle(mass)[tie] - before[group]) / totals[group]


def _sorted(keys: Tensor) -> Tensor:
    """Sort on the CPU with NumPy, which is several times as fast as torch for integers."""
    return keys.sort().values if keys.is_cuda else torch.from_numpy(np.sort(keys.numpy()))


def _middle(mass: Tensor) -> Tensor:
    """Return the mass below each of some ranks plus half of its own: float64, last dimension.

    Counts are summed as integers, so results do not depend on the order of summing or the device.
    """
    return mass.cumsum(dim=-1) - mass.double() / 2
