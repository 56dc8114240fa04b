"""The columns of `latents` that need runs of the subject; only sampled latents have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from nullsae.core.randomness import numpy_generator
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.causal import Tokens, changes_at, context_ids, equal_norms
from nullsae.latents.describe import Described
from nullsae.latents.effects import ROWS, random_directions
from nullsae.latents.injection import count_occurrences, injection_rates, peak_tokens
from nullsae.latents.next_token import Successors
from nullsae.latents.places import Places, firing_places, silent_places
from nullsae.latents.skipped import Skipped
from nullsae.latents.split import Split
from nullsae.latents.store import Firings
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.interventions import Interventions
from nullsae.subjects.loading import Subject

# With fewer contexts, a latent's effects are too uncertain.
LEAST_PLACES = 8
CHANGES = ("ablation_kl_nats", "ablation_ce_nats", "addition_kl_nats", "addition_logp_nats")
INJECTION = ("token_injection_rate", "token_injection_rate_swapped")
COLUMNS = (*(f"{name}{of}" for name in CHANGES for of in ROWS.values()), *INJECTION)
# An additional number that is never null.
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
    """Compute `COLUMNS`, float64 [n_latents] each, NaN if undefined, and `N_FIRINGS`, int64.

    Also returns why there are none, if so. The placebo of `_swapped` uses the direction or tokens
    of another sampled latent.

    Args:
        params: settings, and keys of random draws.
        subject: None if no passes can be run.
        coder: the SAE, on the device that computes.
        dtype: of the stored activations.
        firings: of all latents.
        known: statistics of all latents.
        skipped: tokens that do not count, and the split.
        sampled: int64 [n], the latents to measure, ascending.
    """
    columns = {name: np.full(coder.n_latents, np.nan) for name in COLUMNS}
    columns[N_FIRINGS] = np.zeros(coder.n_latents, dtype=np.int64)
    if subject is None:
        return columns, None
    if not params.latents.causal_places:
        return columns, "latents.causal_places is 0"
    if not len(sampled):
        return columns, "no latent is sampled"
    split, keys = skipped.split, params.keys.parts()
    # The same for all variants.
    order = numpy_generator(params.seed, "causal_contexts").permutation(
        split.n_tokens // split.context_tokens
    )
    turn = numpy_generator(params.seed, "another_sampled_latent", *keys).permutation(len(sampled))
    partners = np.empty(len(sampled), dtype=np.int64)
    partners[turn] = np.roll(turn, 1)
    silence = silent_places(
        *(known.cells, sampled, known.grid, skipped.at, order, params.latents.causal_places),
        _generators(params, "silent_places"),
    )
    found = _changes(
        params, subject, coder, firings, known, split, sampled, partners, order, silence
    )
    silent = silence.enough(len(sampled), _least(params))
    for name, values in found.items():
        columns[name][sampled] = values
    peaks = peak_tokens(firings, sampled, split, count_occurrences(split, skipped.at))
    rates = injection_rates(
        *(subject, params.keys.site, coder, dtype, split, firings, sampled, partners, peaks),
        *(silence, _generators(params, "injected_tokens")),
    )
    for name, values in zip(INJECTION, rates, strict=True):
        columns[name][sampled] = np.where(silent, values, np.nan)
    return columns, None


def _changes(
    params: CollectLatentsParams,
    subject: Subject,
    coder: Autoencoder,
    firings: Firings,
    known: Described,
    split: Split,
    sampled: np.ndarray,
    partners: np.ndarray,
    order: np.ndarray,
    silence: Places,
) -> dict[str, np.ndarray]:
    """Compute the columns of subtracted and added directions for the sampled latents: [n] each."""
    own = coder.w_dec[torch.from_numpy(sampled)]
    drawn = random_directions(params, coder.w_dec.shape)[sampled]
    directions = equal_norms([own, own[torch.from_numpy(partners)], drawn.to(own)])
    successors = Successors.of(split)
    interventions = Interventions(subject, coder.writes_at(params.keys.site))
    fired = firing_places(
        *(firings, sampled, successors.pair, split, order, params.latents.causal_places),
        _generators(params, "ablated_firings"),
    )
    mean = known.statistics["mean_activation"][sampled]
    taken, added = (
        changes_at(interventions, split, places, amounts, directions, tokens)
        for places, amounts, tokens in (
            (
                fired,
                -fired.value * _scales(subject, params.keys.site, coder, split, fired),
                Tokens.of_places(split, fired),
            ),
            (
                silence,
                mean[silence.of] * _scales(subject, params.keys.site, coder, split, silence),
                Tokens.of_firings(firings, sampled, successors, silence),
            ),
        )
    )
    found = {N_FIRINGS: np.bincount(fired.of, minlength=len(sampled))}
    for name, values, places in (
        ("ablation_kl_nats", taken.kl, fired),
        # The loss gains what the log-probability of the next token loses.
        ("ablation_ce_nats", -taken.gain, fired),
        ("addition_kl_nats", added.kl, silence),
        ("addition_logp_nats", added.gain, silence),
    ):
        enough = places.enough(len(sampled), _least(params))
        for row, of in enumerate(ROWS.values()):
            # A single latent cannot be compared with another one.
            there = enough & ((of != "_swapped") | (len(sampled) > 1))
            found[name + of] = np.where(there, values[:, row], np.nan)
    return found


def _scales(
    subject: Subject, site: str, coder: Autoencoder, split: Split, places: Places
) -> np.ndarray:
    """Return what a code of 1 adds of its decoder row at each place: float64 [n_places]."""
    scales = np.ones(len(places.position))
    if coder.normalization == "none":
        return scales
    context, offset = np.divmod(places.position, split.context_tokens)
    for one in np.unique(context).tolist():
        at = np.flatnonzero(context == one)
        ids = torch.from_numpy(context_ids(split, np.array([one])))
        x = subject.activations(ids, split="eval", contexts=[one], sites=[site])[site][0]
        rows = x[torch.from_numpy(offset[at]).to(x.device)].to(coder.b_dec.device, torch.float32)
        scales[at] = coder.contribution(rows).cpu().numpy()
    return scales


def _least(params: CollectLatentsParams) -> int:
    """Return how many places a latent needs."""
    return min(LEAST_PLACES, params.latents.causal_places)


def _generators(params: CollectLatentsParams, purpose: str) -> Callable[[int], np.random.Generator]:
    """Return a function that makes a generator for each latent."""
    return partial(numpy_generator, params.seed, purpose, *params.keys.parts())
