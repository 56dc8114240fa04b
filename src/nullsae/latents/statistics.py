"""Exact statistics of each latent's firings over the whole split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nullsae.config.metrics import with_column
from nullsae.latents.split import LAGS, Split
from nullsae.latents.store import Firings, changes, offsets_of, order_by

# Below this share of the mean square, a variance is a rounding error.
MIN_VARIANCE_SHARE = 1e-12


class TokenMass(NamedTuple):
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
        new = changes(latent, token)
        summed = np.bincount(np.cumsum(new) - 1, weights=mass[order])
        return cls(latent[new].astype(np.int64), token[new].astype(np.int64), summed)


@dataclass(frozen=True)
class Sums:
    """Sums from which the statistics of n latents follow.

    All arrays have length n, except for `tokens` and the metrics' own.
    """

    added: dict[str, np.ndarray]
    """`counts`, `total` and `squares` of the activations; `n_documents`; `offset_total` and
    `offset_squares` (int64) of the firings' offsets in their contexts, and `at_start`, how often
    they are 0; `products` (float64 [n, LAGS]) of the activations of pairs at a distance of 1 to
    LAGS."""
    largest: np.ndarray
    most_in_document: np.ndarray
    """Largest number of firings in one document."""
    ends: np.ndarray
    """int64 [n, 2, 2]: the first and the last document with a firing, and their firings; -1 and 0
    if there are none."""
    tokens: TokenMass
    of_metrics: dict[str, dict[str, np.ndarray]]
    """By metric, the sums of those that add a column."""

    @classmethod
    def of(cls, firings: Firings, split: Split) -> Sums:
        """Sum over firings in memory."""
        n, latent = firings.n_latents, firings.latent
        position, value = firings.position, firings.value.astype(np.float64)
        document = split.document[position]
        context, offset = np.divmod(position, np.asarray(split.context_tokens, position.dtype))
        offset = offset.astype(np.int64)
        first = np.flatnonzero(changes(latent, document))
        in_run = np.diff(np.append(first, len(latent)))
        most = np.zeros(n, dtype=np.int64)
        np.maximum.at(most, latent[first], in_run)
        n_documents = np.bincount(latent[first], minlength=n)
        largest = np.zeros(n, dtype=np.float32)
        alive = np.flatnonzero(firings.counts)
        if len(alive):
            largest[alive] = np.maximum.reduceat(firings.value, firings.offsets[alive])
        ends = np.full((n, 2, 2), [-1, 0])
        bounds = offsets_of(n_documents)
        for side, place in enumerate((bounds[:-1], bounds[1:] - 1)):
            ends[alive, side, 0] = document[first[place[alive]]]
            ends[alive, side, 1] = in_run[place[alive]]
        stretch = np.cumsum(changes(latent, document, context), dtype=np.int32)
        return cls(
            added={
                "counts": firings.counts,
                "total": np.bincount(latent, weights=value, minlength=n),
                "squares": np.bincount(latent, weights=value * value, minlength=n),
                "offset_total": _integers(latent, offset, n),
                "offset_squares": _integers(latent, offset * offset, n),
                "at_start": np.bincount(latent[offset == 0], minlength=n),
                "products": _lag_products(latent, position, value, stretch, n),
                "n_documents": n_documents,
            },
            largest=largest,
            most_in_document=most,
            ends=ends,
            tokens=TokenMass.of(latent, split.ids[position], value),
            of_metrics={m.name: m.latent_sums(firings, split) for m, _ in with_column()},
        )

    def then(self, later: Sums) -> Sums:
        """Add the sums of the same latent's later firings, from other contexts."""
        (_, (last, n_last)), (_, (end, n_end)) = self.ends[0], later.ends[0]
        first, n_first = later.ends[0, 0]
        same = int(last == first)
        joined = n_last + n_first if same else 0
        if same and later.added["n_documents"][0] == 1:
            n_end = joined
        added = _plus(self.added, later.added)
        added["n_documents"] -= same
        most = np.maximum(self.most_in_document, later.most_in_document)
        return Sums(
            added=added,
            largest=np.maximum(self.largest, later.largest),
            most_in_document=np.maximum(most, joined),
            ends=np.array([[self.ends[0, 0], (end, n_end)]]),
            tokens=TokenMass.of(*map(np.concatenate, zip(self.tokens, later.tokens, strict=True))),
            of_metrics={m: _plus(own, later.of_metrics[m]) for m, own in self.of_metrics.items()},
        )

    def columns(self, split: Split, n: int) -> dict[str, np.ndarray]:
        """Compute the statistics [n] by their names in the table `latents`; NaN or -1 if undefined.

        `n` tokens of the split count; a latent is silent on the others.
        """
        added, counts = self.added, self.added["counts"]
        alive = counts > 0
        each = np.where(alive, counts, 1)
        offset = added["offset_total"] / each
        offset_variance = np.maximum(added["offset_squares"] / each - offset**2, 0)
        moments = added["total"], added["squares"], added["products"]
        correlation = autocorrelation(*moments, split.n_tokens, split.n_pairs)

        def of_firings(values: np.ndarray) -> np.ndarray:
            return np.where(alive, values, np.nan)

        return {
            "firings": counts,
            "firing_share": counts / n,
            "mean_activation": of_firings(added["total"] / each),
            "max_activation": self.largest.astype(np.float64),
            "n_documents": added["n_documents"],
            "document_share": added["n_documents"] / split.n_documents,
            "peak_document_share": of_firings(self.most_in_document / each),
            **token_spread(self.tokens, counts),
            "mean_position_tokens": of_firings(offset),
            "sd_position_tokens": of_firings(np.sqrt(offset_variance)),
            "first_position_share": of_firings(added["at_start"] / each),
            "autocorrelation_lag1": correlation[:, 0],
            "autocorrelation": correlation.mean(axis=1),
            **{
                column.name: metric.latent_column(self.of_metrics[metric.name], counts, split)
                for metric, column in with_column()
            },
        }


def autocorrelation(
    total: np.ndarray, squares: np.ndarray, products: np.ndarray, n_tokens: int, n_pairs: np.ndarray
) -> np.ndarray:
    """Compute r_l = (products_l / n_pairs_l - mean^2) / variance, float64 [n, lags].

    Mean and variance are those of the activation over all tokens of the split, including zeros;
    products are over pairs (t, t + l) within one context and document. NaN for a latent without
    variance, and for a lag without pairs. `total` and `squares` (float64 [n]) are sums of
    activations and of their squares, `products` (float64 [n, lags]) sums over pairs; `n_tokens`
    and `n_pairs` (int64 [lags]) are those of the split.
    """
    mean, square = total / n_tokens, squares / n_tokens
    variance = square - mean**2
    defined = variance > MIN_VARIANCE_SHARE * square
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = products / n_pairs - mean[:, None] ** 2
        found = covariance / np.where(defined, variance, np.nan)[:, None]
    return np.where(n_pairs > 0, found, np.nan)


def token_spread(tokens: TokenMass, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute entropy H = -sum p_t log2 p_t, its Miller-Madow correction, and peak share max p_t.

    p_t is proportional to the summed activation on token id t. The correction adds
    (types - 1) / (2 N ln 2) bits for N firings (Miller 1955), because entropies estimated from few
    firings are too low, and firing rates differ between variants. `counts` (int64 [n_latents]) are
    numbers of firings. Returns columns of the table `latents`, each [n_latents]; NaN (or -1) for
    latents that never fire.
    """
    latent, token, mass, n = tokens.latent, tokens.token, tokens.mass, len(counts)
    total = np.bincount(latent, weights=mass, minlength=n)
    share = mass / total[latent]
    alive = total > 0
    types = np.bincount(latent, minlength=n)
    entropy = np.bincount(latent, weights=-share * np.log2(share), minlength=n)
    corrected = entropy + (types - 1) / (2 * np.maximum(counts, 1) * math.log(2))
    peak_share, peak_token = np.full(n, np.nan), np.full(n, -1)
    # The last of each latent's pairs in this order has the largest share; ties: the lowest id.
    order = np.lexsort((-token, share, latent))
    last = np.flatnonzero(np.diff(latent[order], append=-1))
    peak_share[latent[order[last]]] = share[order[last]]
    peak_token[latent[order[last]]] = token[order[last]]
    return {
        "n_token_types": types,
        "token_entropy_bits": np.where(alive, entropy, np.nan),
        "token_entropy_corrected_bits": np.where(alive, corrected, np.nan),
        "peak_token_share": peak_share,
        "peak_token": peak_token,
    }


def entropy_bits(mass: np.ndarray, token_ids: np.ndarray) -> float | None:
    """Compute the entropy in bits of activation mass (float [n], >= 0) over token ids (int [n]).

    None without any mass.
    """
    _, types = np.unique(token_ids, return_inverse=True)
    by_token = np.bincount(types, weights=mass)
    share = by_token[by_token > 0] / by_token.sum()
    return float(-(share * np.log2(share)).sum()) if len(share) else None


def _plus(own: dict[str, np.ndarray], later: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values + later[name] for name, values in own.items()}


def _integers(latent: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Sum integers by latent, int64 [n]; exact, because float64 is up to 2^53."""
    return np.bincount(latent, weights=values, minlength=n).astype(np.int64)


def _lag_products(
    latent: np.ndarray, position: np.ndarray, value: np.ndarray, stretch: np.ndarray, n: int
) -> np.ndarray:
    """Sum products of a latent's activations at distances of 1 to LAGS: float64 [n, LAGS].

    Only pairs within a stretch count. Firings are compared with the next one, the one after that
    and so on. Firings that are too far away are dropped, since all later ones are even farther.
    """
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
