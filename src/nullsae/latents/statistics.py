"""Exact statistics of each latent's firings over the whole split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nullsae.config.metrics import with_column
from nullsae.latents.split import LAGS, Split
from nullsae.latents.store import Firings, order_by

# Below this share of the mean square, a variance is what rounding left of zero.
MIN_VARIANCE_SHARE = 1e-12


@dataclass(frozen=True)
class TokenMass:
    """Summed activation of each latent on each token id on which it fires."""

    latent: np.ndarray
    """int64 [n_pairs], ascending"""
    token: np.ndarray
    """int64 [n_pairs], ascending within a latent"""
    mass: np.ndarray
    """float64 [n_pairs]"""

    @classmethod
    def of(cls, latent: np.ndarray, token: np.ndarray, mass: np.ndarray) -> TokenMass:
        """Sum float64 `mass` over equal pairs of `latent` (ascending) and `token` ids, all [n]."""
        order = order_by(token.astype(np.uint32))
        order = order[order_by(latent[order].astype(np.uint32))]
        latent, token = latent[order], token[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (np.diff(latent) != 0) | (np.diff(token) != 0)
        pair = np.cumsum(new) - 1
        summed = np.bincount(pair, weights=mass[order])
        return cls(latent[new].astype(np.int64), token[new].astype(np.int64), summed)


@dataclass(frozen=True)
class Sums:
    """What the statistics of n latents are made of. All arrays have length n but for `tokens`
    and the metrics' own.
    """

    counts: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    largest: np.ndarray
    offset_total: np.ndarray
    """Summed offsets of the firings in their contexts, int64."""
    offset_squares: np.ndarray
    at_start: np.ndarray
    """Firings at offset 0."""
    products: np.ndarray
    """float64 [n, LAGS]: summed products of the activations of pairs at a distance of 1 to LAGS."""
    n_documents: np.ndarray
    most_in_document: np.ndarray
    """Largest number of firings in one document."""
    ends: np.ndarray
    """int64 [n, 2, 2]: the first and the last document with a firing, and the firings in it; -1
    and 0 without any."""
    tokens: TokenMass
    of_metrics: dict[str, dict[str, np.ndarray]]
    """By metric, the sums of those that add a column."""

    @classmethod
    def of(cls, firings: Firings, split: Split) -> Sums:
        """Sums over firings in memory."""
        n, latent = firings.n_latents, firings.latent
        position, value = firings.position, firings.value.astype(np.float64)
        document = split.document[position]
        context, offset = np.divmod(position, np.asarray(split.context_tokens, position.dtype))
        offset = offset.astype(np.int64)
        run = _changes(latent, document)
        first = np.flatnonzero(run)
        in_run = np.diff(np.append(first, len(latent)))
        most = np.zeros(n, dtype=np.int64)
        np.maximum.at(most, latent[first], in_run)
        n_documents = np.bincount(latent[first], minlength=n)
        largest = np.zeros(n, dtype=np.float32)
        alive = np.flatnonzero(firings.counts)
        if len(alive):
            largest[alive] = np.maximum.reduceat(firings.value, firings.offsets[alive])
        ends = np.zeros((n, 2, 2), dtype=np.int64)
        ends[:, :, 0] = -1
        bounds = np.concatenate([[0], np.cumsum(n_documents)])
        for side, place in enumerate((bounds[:-1], bounds[1:] - 1)):
            ends[alive, side, 0] = document[first[place[alive]]]
            ends[alive, side, 1] = in_run[place[alive]]
        return cls(
            counts=firings.counts,
            total=np.bincount(latent, weights=value, minlength=n),
            squares=np.bincount(latent, weights=value * value, minlength=n),
            largest=largest,
            offset_total=_integers(latent, offset, n),
            offset_squares=_integers(latent, offset * offset, n),
            at_start=np.bincount(latent[offset == 0], minlength=n),
            products=_lag_products(latent, position, value, _changes(latent, document, context), n),
            n_documents=n_documents,
            most_in_document=most,
            ends=ends,
            tokens=TokenMass.of(latent, split.ids[position], value),
            of_metrics={m.name: m.latent_sums(firings, split) for m, _ in with_column()},
        )

    def then(self, later: Sums) -> Sums:
        """Add the sums of the same latent's later firings, which lie in other contexts."""
        (_, (last, n_last)), (_, (end, n_end)) = self.ends[0], later.ends[0]
        first, n_first = later.ends[0, 0]
        same = int(last == first)
        joined = n_last + n_first if same else 0
        if same and later.n_documents[0] == 1:
            n_end = joined
        both = (self.tokens, later.tokens)
        latent, token, mass = (
            np.concatenate([getattr(part, name) for part in both])
            for name in ("latent", "token", "mass")
        )
        ends = np.array([[self.ends[0, 0], (end, n_end)]])
        return Sums(
            counts=self.counts + later.counts,
            total=self.total + later.total,
            squares=self.squares + later.squares,
            largest=np.maximum(self.largest, later.largest),
            offset_total=self.offset_total + later.offset_total,
            offset_squares=self.offset_squares + later.offset_squares,
            at_start=self.at_start + later.at_start,
            products=self.products + later.products,
            n_documents=self.n_documents + later.n_documents - same,
            most_in_document=np.maximum.reduce(
                [self.most_in_document, later.most_in_document, np.array([joined])]
            ),
            ends=ends,
            tokens=TokenMass.of(latent, token, mass),
            of_metrics={
                metric: {name: own + later.of_metrics[metric][name] for name, own in sums.items()}
                for metric, sums in self.of_metrics.items()
            },
        )

    def columns(self, split: Split) -> dict[str, np.ndarray]:
        """The statistics [n] by their names in the table `latents`; NaN (or -1) where undefined."""
        n, counts = split.n_tokens, self.counts
        alive = counts > 0
        each = np.where(alive, counts, 1)
        spread = token_spread(self.tokens, counts)
        offset = self.offset_total / each
        offset_variance = np.maximum(self.offset_squares / each - offset**2, 0)
        correlation = autocorrelation(self.total, self.squares, self.products, n, split.n_pairs)

        def of_firings(values: np.ndarray) -> np.ndarray:
            return np.where(alive, values, np.nan)

        return {
            "firings": counts,
            "firing_share": counts / n,
            "mean_activation": of_firings(self.total / each),
            "max_activation": self.largest.astype(np.float64),
            "n_documents": self.n_documents,
            "document_share": self.n_documents / split.n_documents,
            "peak_document_share": of_firings(self.most_in_document / each),
            "n_token_types": spread.n_types,
            "token_entropy_bits": spread.entropy_bits,
            "token_entropy_corrected_bits": spread.corrected_bits,
            "peak_token_share": spread.peak_share,
            "peak_token": spread.peak_token,
            "mean_position_tokens": of_firings(offset),
            "sd_position_tokens": of_firings(np.sqrt(offset_variance)),
            "first_position_share": of_firings(self.at_start / each),
            "autocorrelation_lag1": correlation[:, 0],
            "autocorrelation": correlation.mean(axis=1),
            **{
                column.name: metric.latent_column(self.of_metrics[metric.name], counts, split)
                for metric, column in with_column()
            },
        }


def autocorrelation(
    total: np.ndarray,
    squares: np.ndarray,
    products: np.ndarray,
    n_tokens: int,
    n_pairs: np.ndarray,
) -> np.ndarray:
    """r_l = (products_l / n_pairs_l - mean^2) / variance, float64 [n, lags].

    Mean and variance are those of the activation over all tokens of the split, zeros included;
    products are over pairs (t, t + l) within one context and document. NaN for a latent without
    variance, and for a lag without pairs.

    Args:
        total: float64 [n], summed activations.
        squares: float64 [n], summed squares.
        products: float64 [n, lags], summed products of pairs.
        n_tokens: tokens of the split.
        n_pairs: int64 [lags], pairs of the split.
    """
    mean, square = total / n_tokens, squares / n_tokens
    variance = square - mean**2
    defined = variance > MIN_VARIANCE_SHARE * square
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = products / n_pairs - mean[:, None] ** 2
        found = covariance / np.where(defined, variance, np.nan)[:, None]
    return np.where(n_pairs > 0, found, np.nan)


@dataclass(frozen=True)
class TokenSpread:
    """How a latent's activation is spread over token ids: p_t proportional to the summed
    activation on token id t. Arrays of length n_latents; NaN (or -1) without a firing.
    """

    entropy_bits: np.ndarray
    corrected_bits: np.ndarray
    peak_share: np.ndarray
    peak_token: np.ndarray
    n_types: np.ndarray


def token_spread(tokens: TokenMass, counts: np.ndarray) -> TokenSpread:
    """Entropy H = -sum p_t log2 p_t, its Miller-Madow correction, and the peak share max p_t.

    The correction adds (types - 1) / (2 N ln 2) bits for N firings (Miller 1955): an entropy
    estimated from few firings is too low, and firing rates differ between variants.

    Args:
        tokens: summed activations.
        counts: int64 [n_latents], firings.
    """
    latent, token, mass, n = tokens.latent, tokens.token, tokens.mass, len(counts)
    total = np.bincount(latent, weights=mass, minlength=n)
    share = mass / total[latent]
    alive = total > 0
    types = np.bincount(latent, minlength=n)
    entropy = np.bincount(latent, weights=-share * np.log2(share), minlength=n)
    corrected = entropy + (types - 1) / (2 * np.maximum(counts, 1) * math.log(2))
    peak_share, peak_token = np.zeros(n), np.full(n, -1)
    # The last of each latent's pairs in this order has the largest share; ties: the lowest id.
    order = np.lexsort((-token, share, latent))
    last = np.flatnonzero(np.diff(latent[order], append=-1))
    peak_share[latent[order[last]]] = share[order[last]]
    peak_token[latent[order[last]]] = token[order[last]]
    return TokenSpread(
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
    _, types = np.unique(token_ids, return_inverse=True)
    by_token = np.bincount(types, weights=mass) if len(types) else np.zeros(1)
    share = by_token[by_token > 0] / by_token.sum() if by_token.sum() > 0 else np.zeros(0)
    return float(-(share * np.log2(share)).sum()) if len(share) else None


def _changes(*keys: np.ndarray) -> np.ndarray:
    """Where any of the keys differs from the one before; bool [n], True at the first."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = False
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return new


def _integers(latent: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Sums of integers by latent, int64 [n]: exact, as float64 is up to 2^53."""
    return np.bincount(latent, weights=values, minlength=n).astype(np.int64)


def _lag_products(
    latent: np.ndarray, position: np.ndarray, value: np.ndarray, new: np.ndarray, n: int
) -> np.ndarray:
    """Summed products of a latent's activations at distances of 1 to LAGS: float64 [n, LAGS].

    Only pairs between two places where `new` starts a stretch count. Firings are compared with
    the one after, the second after and so on, and those that are too far away are dropped: they
    are also too far from all later ones.
    """
    stretch = np.cumsum(new, dtype=np.int32)
    sums = np.zeros(n * LAGS)
    left = np.arange(len(latent))
    step = 0
    while len(left):
        step += 1
        left = left[: np.searchsorted(left, len(latent) - step)]
        right = left + step
        distance = position[right] - position[left]
        near = (stretch[right] == stretch[left]) & (distance <= LAGS)
        left, right, distance = left[near], right[near], distance[near].astype(np.int64)
        sums += np.bincount(
            latent[left] * LAGS + distance - 1,
            weights=value[left] * value[right],
            minlength=n * LAGS,
        )
    return sums.reshape(n, LAGS)
