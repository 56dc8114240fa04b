"""The columns of `latents` that take passes of the subject: sampled latents alone have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from nullsae.core.randomness import numpy_generator
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.causal import Tokens, changes_at, equal_norms
from nullsae.latents.describe import Described
from nullsae.latents.effects import ROWS, random_directions
from nullsae.latents.injection import count_occurrences, injection_rates, peak_tokens
from nullsae.latents.next_token import Successors
from nullsae.latents.places import firing_places, silent_places
from nullsae.latents.skipped import Skipped
from nullsae.latents.store import Firings
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.interventions import Interventions
from nullsae.subjects.loading import Subject

# Fewer contexts than these say too little of a latent.
LEAST_PLACES = 8
CHANGES = ("ablation_kl_nats", "ablation_ce_nats", "addition_kl_nats", "addition_logp_nats")
INJECTION = ("token_injection_rate", "token_injection_rate_swapped")
COLUMNS = (*(f"{name}{of}" for name in CHANGES for of in ROWS.values()), *INJECTION)
# Beside them, a number that is never null.
N_FIRINGS = "ablation_firings"


def causal_columns(
    params: CollectLatentsParams,
    *,
    subject: Subject | None,
    coder: Autoencoder,
    dtype: str,
    firings: Firings,
    known: Described,
    skipped: Skipped,
    sampled: np.ndarray,
) -> tuple[dict[str, np.ndarray], str | None]:
    """`COLUMNS`, float64 [n_latents] each and NaN where undefined, and `N_FIRINGS`, int64.

    Also why there are none, if there are none. The placebo of `_swapped` is the direction, or are
    the tokens, of another sampled latent.

    Args:
        params: settings, and keys of what is drawn.
        subject: None where no passes can be run.
        coder: the SAE, on the device that computes.
        dtype: that the activations are stored in.
        firings: of all latents.
        known: of all latents.
        skipped: tokens that do not count, and the split.
        sampled: int64 [n], the latents that are looked at, ascending.
    """
    columns = {name: np.full(coder.n_latents, np.nan) for name in COLUMNS}
    columns[N_FIRINGS] = np.zeros(coder.n_latents, dtype=np.int64)
    n = params.latents.causal_places
    if subject is None or not n or not len(sampled):
        return columns, None if subject is None else _reason(n)
    split, site, keys = skipped.split, params.keys.site, params.keys.parts()
    least = min(LEAST_PLACES, n)

    def generator_of(purpose: str) -> Callable[[int], np.random.Generator]:
        return partial(numpy_generator, params.seed, purpose, *keys)

    # The same for all variants.
    order = numpy_generator(params.seed, "causal_contexts").permutation(
        split.n_tokens // split.context_tokens
    )
    turn = numpy_generator(params.seed, "another_sampled_latent", *keys).permutation(len(sampled))
    partners = np.empty(len(sampled), dtype=np.int64)
    partners[turn] = np.roll(turn, 1)
    own = coder.w_dec[torch.from_numpy(sampled)]
    drawn = random_directions(params, coder.w_dec.shape)[sampled]
    directions = equal_norms([own, own[torch.from_numpy(partners)], drawn.to(own)])
    successors, interventions = Successors.of(split), Interventions(subject, site)

    places = firing_places(
        *(firings, sampled, successors.pair, split, order, n),
        generator_of("ablated_firings"),
    )
    found = changes_at(
        *(interventions, split, places, -places.value, directions),
        Tokens.of_places(split, places),
    )
    enough = places.enough(len(sampled), least)
    columns[N_FIRINGS][sampled] = np.bincount(places.of, minlength=len(sampled))
    # What the log-probability of the next token loses, the loss gains.
    for name, values in (("ablation_kl_nats", found.kl), ("ablation_ce_nats", -found.gain)):
        _fill(columns, name, values, sampled, enough)

    silence = silent_places(
        *(known.cells, sampled, known.grid, skipped.at, order, n),
        generator_of("silent_places"),
    )
    enough_silent = silence.enough(len(sampled), least)
    mean = known.statistics["mean_activation"][sampled]
    found = changes_at(
        *(interventions, split, silence, mean[silence.of], directions),
        Tokens.of_firings(firings, sampled, successors, silence),
    )
    for name, values in (("addition_kl_nats", found.kl), ("addition_logp_nats", found.gain)):
        _fill(columns, name, values, sampled, enough_silent)

    peaks = peak_tokens(firings, sampled, split, count_occurrences(split, skipped.at))
    rates = injection_rates(
        *(subject, site, coder, dtype, split, firings, sampled, partners, peaks, silence),
        generator_of("injected_tokens"),
    )
    for name, values in zip(INJECTION, rates, strict=True):
        columns[name][sampled] = np.where(enough_silent, values, np.nan)
    return columns, None


def _reason(n: int) -> str:
    return "no latent is sampled" if n else "latents.causal_places is 0"


def _fill(
    columns: dict[str, np.ndarray],
    name: str,
    means: np.ndarray,
    sampled: np.ndarray,
    known: np.ndarray,
) -> None:
    """Put means [n, rows] into their columns, of the latents with enough places (bool [n])."""
    for row, of in enumerate(ROWS.values()):
        # The only one of its kind has no other to be compared with.
        there = known & ((of != "_swapped") | (len(sampled) > 1))
        columns[name + of][sampled] = np.where(there, means[:, row], np.nan)
