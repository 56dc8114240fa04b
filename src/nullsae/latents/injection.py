"""How much of a latent its tokens alone explain: they are written where it is silent.

A latent fires on some share of the occurrences of a token in the text. If it reads only the token,
it fires as often when the token is written into random text; if it reads preceding text too, less
often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from nullsae.latents.causal import context_ids, cut_batches
from nullsae.latents.places import Places
from nullsae.latents.split import Split
from nullsae.latents.store import Firings
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.loading import DTYPES, Subject

# Tokens of a latent that are written: those with the largest sums of its activation.
PEAK_TOKENS = 5


@dataclass(frozen=True)
class PeakTokens:
    """The tokens of a latent that are written, in ascending order."""

    ids: np.ndarray
    """int64 [n]."""
    shares: np.ndarray
    """float64 [n]: shares of its firings on these tokens."""
    rates: np.ndarray
    """float64 [n]: share of the occurrences of each on which the latent fires."""


def peak_tokens(
    firings: Firings, latents: np.ndarray, split: Split, occurrences: np.ndarray
) -> list[PeakTokens]:
    """Return the peak tokens of each latent (int64 [n_latents]).

    `occurrences`, int64 [n_types], counts each token id where firings count.
    """
    found = []
    for latent in latents.tolist():
        own = firings.of(latent)
        kinds, kind = np.unique(split.ids[firings.position[own]], return_inverse=True)
        total = np.bincount(kind, firings.value[own].astype(np.float64), len(kinds))
        peak = np.sort(np.argsort(-total, kind="stable")[:PEAK_TOKENS])
        ids, n = kinds[peak].astype(np.int64), np.bincount(kind, minlength=len(kinds))[peak]
        found.append(PeakTokens(ids, n / max(1, n.sum()), n / occurrences[ids]))
    return found


def count_occurrences(split: Split, skipped: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Count each token id where firings count: int64 [n_types]."""
    counted = np.zeros(split.n_types, dtype=np.int64)
    for piece in split.pieces():
        counts = ~skipped(np.arange(piece.start, piece.stop))
        counted += np.bincount(split.ids[piece][counts], minlength=split.n_types)
    return counted


class InjectionRates(NamedTuple):
    """Firing rates on written tokens, relative to that on the same tokens in the text.

    float64 [n_latents] each; NaN if nothing was written.
    """

    own: np.ndarray
    """The latent's own tokens. 1: the token alone explains its firing; 0: not at all."""
    swapped: np.ndarray
    """Another latent's tokens, relative to the rate on the latent's own."""


def injection_rates(
    subject: Subject,
    site: str,
    coder: Autoencoder,
    dtype: str,
    split: Split,
    firings: Firings,
    latents: np.ndarray,
    partners: np.ndarray,
    peaks: list[PeakTokens],
    places: Places,
    generator_of: Callable[[int], np.random.Generator],
) -> InjectionRates:
    """Write tokens and measure which latents fire.

    The token of a place is drawn from the peak tokens of its latent in proportion to its firings on
    them. Rates are relative to the mean, over these draws, of the token's rate in the text. For the
    placebo, each latent is observed at those places of its partner where it is silent too.

    Args:
        subject: runs contexts of `eval`, cut after the places.
        site: of the dictionary.
        coder: the dictionary, on the device that computes.
        dtype: in which activations are stored before they are encoded.
        split: `eval`.
        firings: of all latents in it.
        latents: int64 [n_latents], ascending.
        partners: int64 [n_latents], by index another latent for each, or itself for none.
        peaks: of each latent.
        places: tokens where each latent is silent.
        generator_of: a latent's own generator.
    """
    n = len(latents)
    written = np.zeros(len(places.position), dtype=np.int64)
    rate = np.zeros(len(written))
    for index, (latent, own) in enumerate(zip(latents.tolist(), peaks, strict=True)):
        mine = np.flatnonzero(places.of == index)
        if len(mine):
            drawn = generator_of(latent).choice(len(own.ids), len(mine), p=own.shares)
            written[mine], rate[mine] = own.ids[drawn], own.rates[drawn]
    # The latent whose partner's tokens are written at each place.
    reader = np.argsort(partners)[places.of]
    silent = np.ones(len(written), dtype=bool)
    for index, latent in enumerate(latents.tolist()):
        mine = np.flatnonzero(reader == index)
        silent[mine] = ~np.isin(places.position[mine], firings.position[firings.of(latent)])
    fires = _fires(
        *(subject, site, coder, dtype, split, places.position, written),
        np.stack([latents[places.of], latents[reader]], axis=1),
    )
    with np.errstate(invalid="ignore"):
        in_text = _means(places.of, rate, n)
        own = _means(places.of, fires[:, 0], n) / in_text
        other = silent & (reader != places.of)
        swapped = _means(reader[other], fires[other, 1], n) / in_text
    return InjectionRates(own, swapped)


def _means(of: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    counts = np.bincount(of, minlength=n).astype(np.float64)
    counts[counts == 0] = np.nan
    return np.bincount(of, values, n) / counts


def _fires(
    subject: Subject,
    site: str,
    coder: Autoencoder,
    dtype: str,
    split: Split,
    position: np.ndarray,
    written: np.ndarray,
    latents: np.ndarray,
) -> np.ndarray:
    """Return whether latents (int64 [n, m]) fire at places on the tokens written there.

    Returns bool [n, m].
    """
    fires = np.zeros(latents.shape, dtype=bool)
    for index, length in cut_batches(split, position, subject.device):
        context, offset = np.divmod(position[index], split.context_tokens)
        ids = context_ids(split, context)[:, :length]
        ids[np.arange(len(index)), offset] = written[index]
        x = subject.activations(
            torch.from_numpy(ids), split="eval", contexts=context.tolist(), sites=[site]
        )[site]
        at = x[torch.arange(len(index)), torch.from_numpy(offset)]
        device = coder.b_dec.device
        stored = at.to(device, DTYPES[dtype]).to(torch.float32)
        values, indices = coder.encode(stored, torch.from_numpy(written[index]))
        wanted = torch.from_numpy(latents[index]).to(device)
        hit = (indices[:, None, :] == wanted[:, :, None]) & (values > 0)[:, None, :]
        fires[index] = hit.any(dim=2).cpu().numpy()
    return fires
