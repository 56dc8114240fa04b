"""Tokens that are captured and then excluded from training and from every metric.

Attention sinks and other tokens of massive norm can account for nearly all variance of a site (Sun
et al. 2024, arXiv 2402.17762): explained variance then measures only how well those are copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from nullsae.config.activations import Exclude
from nullsae.core.errors import UserError
from nullsae.core.moments import ROUNDING
from nullsae.core.randomness import torch_generator


def row_norms(x: Tensor) -> Tensor:
    """Return norms of stored activations [n, d_model], as compared with a limit: float32 [n]."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    return norms


def lower_median(parts: Callable[[], Iterable[Tensor]]) -> float:
    """Return the exact median of nonnegative float32 numbers that come in parts [n].

    It needs constant memory. Of an even number it returns the lower of the middle two; of none, 0.
    Nonnegative floats are ordered like their bits: counting by the upper half of the bits finds the
    bin, counting by the lower half finds the number. So `parts` is called twice.
    """

    def bits() -> Iterable[Tensor]:
        return (part.contiguous().view(torch.int32) for part in parts())

    counts = torch.zeros(2**16, dtype=torch.int64)
    for part in bits():
        counts += torch.bincount(part >> 16, minlength=2**16)
    if not (n := int(counts.sum())):
        return 0.0
    rank = (n - 1) // 2
    below = counts.cumsum(0)
    upper = int((below <= rank).sum())
    rank -= int(below[upper - 1]) if upper else 0
    counts.zero_()
    for part in bits():
        inside = part[part >> 16 == upper]
        counts += torch.bincount(inside & 0xFFFF, minlength=2**16)
    lower = int((counts.cumsum(0) <= rank).sum())
    return float(torch.tensor(upper << 16 | lower, dtype=torch.int32).view(torch.float32))


@dataclass(frozen=True)
class Kept:
    """Which tokens of a site count: the rule in the config with the resulting norm limit."""

    start_tokens: int = 0
    norm_limit: float = math.inf
    context_tokens: int = 1

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """Return the rule in the manifest of a site."""
        excluded = manifest["excluded"]
        limit = excluded["norm_limit"]
        return cls(
            excluded["start_tokens"],
            math.inf if limit is None else limit,
            manifest["context_tokens"],
        )

    @classmethod
    def fitted(
        cls,
        exclude: Exclude,
        rows: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        context_tokens: int,
    ) -> tuple[Self, float]:
        """Fit the rule to all `rows` of a split; return it and the median norm.

        Rows are (norms float32 [n], positions int64 [n]). The median is over the tokens that are
        not at the start. If it is 0, no norm is too large: a site where most tokens are zero has no
        typical norm.
        """
        start = cls(exclude.start_tokens, math.inf, context_tokens)
        median = lower_median(lambda: (norm[start.mask(norm, at)] for norm, at in rows()))
        if exclude.norm_above_median is None or not median:
            return start, median
        return cls(exclude.start_tokens, exclude.norm_above_median * median, context_tokens), median

    def mask(self, norm: Tensor, position: Tensor) -> Tensor:
        """Return which tokens count, bool [n], from norms float32 [n] and flat positions int64."""
        return (norm <= self.norm_limit) & (position % self.context_tokens >= self.start_tokens)

    def fill(self, x: Tensor, kept: Tensor, seed: int, index: int, where: str) -> Tensor:
        """Replace each excluded token of a block [n, d_model] by one that counts.

        Blocks and batches thus keep their sizes, the same for every variant. The config's seed and
        the index of the block determine which tokens are seen twice. Raises a `UserError` that
        starts with `where` if all tokens are excluded.
        """
        if bool(kept.all()):
            return x
        rows = kept.nonzero()[:, 0]
        if not len(rows):
            raise UserError(
                f"{where}: no token is left; lower activations.exclude.start_tokens or raise "
                f"activations.exclude.norm_above_median"
            )
        lacking = (~kept).nonzero()[:, 0]
        generator = torch_generator(seed, "fill_excluded", index)
        drawn = torch.randint(len(rows), (len(lacking),), generator=generator)
        source = torch.arange(len(kept))
        source[lacking] = rows[drawn]
        return x.index_select(0, source.to(x.device))


@dataclass
class LeftOut:
    """Sums over a site's excluded tokens, next to those over all of its tokens."""

    n: int
    """Number of all tokens."""
    total: Tensor
    """Sum of all activations, float64 [d_model]."""
    norm_sum: float
    """Sum of all norms."""
    square_sum: float
    """Sum of all squared norms."""
    n_excluded: int = 0
    excluded_norm_sum: float = 0.0
    excluded_square_sum: float = 0.0
    positions: list[Tensor] = field(default_factory=list)
    """Positions of the excluded tokens, int64."""

    def __post_init__(self) -> None:
        self.excluded_total = torch.zeros_like(self.total)

    def add(self, x: Tensor, position: Tensor) -> None:
        """Add excluded tokens: activations [n, d_model], positions int64 [n]."""
        exact = x.double()
        norms = exact.norm(dim=1)
        self.n_excluded += len(exact)
        self.excluded_total += exact.sum(dim=0)
        self.excluded_norm_sum += float(norms.sum())
        self.excluded_square_sum += float(norms.square().sum())
        self.positions.append(position)

    @property
    def mean(self) -> Tensor:
        """Mean of the tokens that count, float64 [d_model]."""
        return (self.total - self.excluded_total) / (self.n - self.n_excluded)

    @property
    def mean_norm(self) -> float:
        """Mean norm of the tokens that count."""
        return (self.norm_sum - self.excluded_norm_sum) / (self.n - self.n_excluded)

    @property
    def variance(self) -> float:
        """Mean squared distance of the tokens that count from their mean; 0 if only rounding."""
        n = self.n - self.n_excluded
        square = (self.square_sum - self.excluded_square_sum) / n
        variance = square - float(self.mean.square().sum())
        return variance if variance > ROUNDING * square else 0.0

    @property
    def variance_share(self) -> float:
        """Share of sum |x - mean|^2, over all tokens and about their mean, that is excluded."""
        mean = self.total / self.n
        square = float(mean.square().sum())
        variance = self.square_sum - self.n * square
        held = self.excluded_square_sum - 2 * float(mean @ self.excluded_total)
        held += self.n_excluded * square
        return held / variance if self.n_excluded and variance > 0 else 0.0
