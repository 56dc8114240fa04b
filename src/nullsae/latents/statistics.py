"""Exact statistics of each latent's firings over the whole split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Firings:
    """All firings of a split, sorted by latent, then by position."""

    latent: np.ndarray
    """int64 [n]"""
    position: np.ndarray
    """int64 [n], flat token index in the split"""
    value: np.ndarray
    """float32 [n], above 0"""
    n_latents: int

    @classmethod
    def sort(
        cls, latent: np.ndarray, position: np.ndarray, value: np.ndarray, n_latents: int
    ) -> Firings:
        """From firings in any order."""
        order = np.lexsort((position, latent))
        return cls(latent[order], position[order], value[order], n_latents)

    @property
    def counts(self) -> np.ndarray:
        """Firings of each latent, int64 [n_latents]."""
        return np.bincount(self.latent, minlength=self.n_latents)

    def of(self, latent: int) -> slice:
        """Where one latent's firings lie."""
        low, high = np.searchsorted(self.latent, [latent, latent + 1])
        return slice(int(low), int(high))

    def sums(self) -> np.ndarray:
        """Summed activation of each latent, float64 [n_latents]."""
        return np.bincount(self.latent, weights=self.value, minlength=self.n_latents)

    def maxima(self) -> np.ndarray:
        """Largest activation of each latent, float64 [n_latents], 0 without a firing."""
        largest = np.zeros(self.n_latents)
        np.maximum.at(largest, self.latent, self.value)
        return largest

    def distinct(self, group: np.ndarray) -> np.ndarray:
        """Distinct values of `group` (one per firing, not negative) of each latent."""
        width = int(group.max(initial=0)) + 1
        pairs = np.unique(self.latent * width + group)
        return np.bincount(pairs // width, minlength=self.n_latents)


@dataclass(frozen=True)
class TokenStatistics:
    """How a latent's activation is spread over token ids: p_t proportional to the summed
    activation on token id t. Arrays of length n_latents; NaN (or -1) without a firing.
    """

    entropy_bits: np.ndarray
    corrected_bits: np.ndarray
    peak_share: np.ndarray
    peak_token: np.ndarray
    n_types: np.ndarray


def token_statistics(firings: Firings, token_ids: np.ndarray) -> TokenStatistics:
    """Entropy H = -sum p_t log2 p_t, its Miller-Madow correction, and the peak share max p_t.

    The correction adds (types - 1) / (2 N ln 2) bits for N firings (Miller 1955): an entropy
    estimated from few firings is too low, and firing rates differ between variants.

    Args:
        firings: firings of the split.
        token_ids: int [n], the token id under each firing.
    """
    vocab = int(token_ids.max(initial=0)) + 1
    pairs, inverse = np.unique(firings.latent * vocab + token_ids, return_inverse=True)
    mass = np.bincount(inverse, weights=firings.value, minlength=len(pairs))
    latent, token = pairs // vocab, pairs % vocab
    n = firings.n_latents
    total = np.bincount(latent, weights=mass, minlength=n)
    share = mass / total[latent]
    alive = total > 0
    types = np.bincount(latent, minlength=n)
    entropy = np.bincount(latent, weights=-share * np.log2(share), minlength=n)
    counts = np.maximum(firings.counts, 1)
    corrected = entropy + (types - 1) / (2 * counts * math.log(2))
    peak_share, peak_token = np.zeros(n), np.full(n, -1)
    # The last of each latent's pairs in this order has the largest share; ties: the lowest id.
    order = np.lexsort((-token, share, latent))
    last = np.flatnonzero(np.diff(latent[order], append=-1))
    peak_share[latent[order[last]]] = share[order[last]]
    peak_token[latent[order[last]]] = token[order[last]]
    return TokenStatistics(
        entropy_bits=np.where(alive, entropy, np.nan),
        corrected_bits=np.where(alive, corrected, np.nan),
        peak_share=np.where(alive, peak_share, np.nan),
        peak_token=peak_token,
        n_types=types,
    )


def entropy_bits(mass: np.ndarray, token_ids: np.ndarray) -> float | None:
    """Entropy in bits of activation mass over token ids; None without any mass.

    Args:
        mass: float [n], not negative.
        token_ids: int [n].
    """
    by_token = np.bincount(token_ids, weights=mass) if len(token_ids) else np.zeros(1)
    share = by_token[by_token > 0] / by_token.sum() if by_token.sum() > 0 else np.zeros(0)
    return float(-(share * np.log2(share)).sum()) if len(share) else None
