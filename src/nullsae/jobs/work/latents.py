"""Formulas of `collect_latents`: time, and all that it holds, in the sizes of a study.

Constants in seconds are of one core of the reference CPU. d is the width of a subject, m the
latents of an SAE.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from nullsae.config.model_size import BYTES
from nullsae.config.sites import site_layer
from nullsae.config.variants import has_model
from nullsae.jobs.grid import Keys
from nullsae.jobs.work.amounts import (
    BLOCK_NUMBERS,
    SizedStudy,
    Work,
    coding_bytes,
    coding_gpu_bytes,
    encoding,
    forward,
    in_turn,
    sae_bytes,
    sharing_passes,
    together,
)
from nullsae.jobs.work.making import anew, anew_bytes

FIRING_SECONDS, WINDOW_SECONDS, LATENT_SECONDS = 3e-7, 4e-5, 2e-5
LATENT_BYTES, WINDOW_TOKEN_BYTES = 90.0, 2.5
# What writing tables loads and keeps, with gaps between pieces that passes have freed.
WRITING_BYTES = 8e7
# Of a firing on disk: its position and its value.
SPOOLED_BYTES = 8.0
# Firings of a run, of a piece that is described, and what one takes while it waits, while runs are
# sorted, while it is described, and in the search for silent windows.
RUN_FIRINGS, PIECE_FIRINGS = 2**20, 2**19
HELD_FIRING, SORTED_FIRING, DESCRIBED_FIRING, CO_OCCURRING_FIRING = 10.0, 30.0, 150.0, 30.0
# Tokens that are captured at once to take latents away, rows of a pass, and its logits, on a CPU;
# how many times as many on a GPU; bytes of a logit.
CAUSAL_TOKENS, CAUSAL_ROWS, CAUSAL_LOGITS, CAUSAL_ON_GPU = 2**12, 2**7, 2**21, 4
CAUSAL_LOGIT_BYTES = 60.0
# Effects of three directions that a product computes; those that are ranked at once on a CPU (on a
# GPU, all), or as many successors or firings; bytes of one, and of a token with its successor.
EFFECTS, EFFECT_BYTES, RANKED, RANKED_EFFECT_BYTES, PAIR_BYTES = 2**21, 12.0, 2**18, 250.0, 40.0


def collect_latents(study: SizedStudy, keys: Keys) -> Work:
    """One SAE."""
    return collect_latents_of_all(study, [keys])


def collect_latents_of_all(study: SizedStudy, cells: list[Keys]) -> Work:
    """The SAEs of a job, one after the other, but for passes that compute activations for several.

    Held: `_held`; of SAEs that share a pass, all, and a run of firings of each, until they are
    described in turn. What the data decide counts at its most: k firings on
    each token, as many sampled latents as are asked for, and all latents through the filter as far
    as their firings go. It is bounded, and a job that is killed for its memory starts anew. On
    disk: `SPOOLED_BYTES` a firing, and as much again while those of an SAE are put together.
    """
    parts = [_described(study, cell) for cell in cells]
    for group in sharing_passes(study, cells):
        keys, sites = group[0], dict.fromkeys(cell["site"] for cell in group)
        passes = anew(study, keys, sites, study.cached(keys, "eval"))
        live, held = anew_bytes(study, keys, sites), [_held(study, cell) for cell in group]
        waiting, saes = sum(one.waiting for one in held), sum(one.sae for one in held)
        spooled = [SPOOLED_BYTES * _firings(study, cell) for cell in group]
        parts.append(
            together(
                *passes,
                work_bytes=sum(spooled) + max(spooled),
                held_bytes=max(
                    waiting + max(one.encoding for one in held) + live,
                    *(waiting - one.waiting + one.described for one in held),
                ),
                gpu_bytes=max(saes - one.sae + max(one.on_gpu, one.coding + live) for one in held),
                imports="transformers" if passes else "torch",
                gpu=True,
            )
        )
    return in_turn(parts)


def _described(study: SizedStudy, keys: Keys) -> Work:
    """Encode `eval`, sort firings, cut windows of the sampled latents; passes of the subject."""
    (recipe, d, m), settings = study.sae(keys), study.config.latents
    passes, n = causal_passes(study, keys), study.cached(keys, "eval")
    rows, firing_seconds = (
        settings.n_sampled * windows_of(study),
        _firings(study, keys) * FIRING_SECONDS,
    )
    return together(
        encoding(recipe, d, m, n),
        *passes,
        tokens=n + sum(part.tokens for part in passes),
        host_seconds=firing_seconds + rows * WINDOW_SECONDS + m * LATENT_SECONDS,
        written_bytes=m * LATENT_BYTES + rows * settings.window_tokens * WINDOW_TOKEN_BYTES,
        imports="transformers" if passes else "torch",
        gpu=True,
    )


class _Held(NamedTuple):
    """Bytes that one SAE takes."""

    sae: float
    waiting: float
    """From the pass on until it is described."""
    encoding: float
    """Beside, while it encodes, or sorts a run."""
    described: float
    """At most once it is described, itself included."""
    coding: float
    """Of a GPU, while it encodes."""
    on_gpu: float
    """Of a GPU, later."""


def _firings(study: SizedStudy, keys: Keys) -> int:
    """The most that an SAE can have in `eval`."""
    return study.cached(keys, "eval") * study.recipe(keys).kept


def _held(study: SizedStudy, keys: Keys) -> _Held:
    (recipe, d, m), settings = study.sae(keys), study.config.latents
    n_eval, fired = study.corpus(keys).eval_tokens, _firings(study, keys)
    one, run, piece = sae_bytes(d, m), min(RUN_FIRINGS, fired), min(PIECE_FIRINGS, fired)
    kinds = {"nearest": 25.0 * n_eval / 2, "co_occurring": CO_OCCURRING_FIRING * piece}
    silent = sum(kinds.get(kind, 0.0) for kind in settings.silent_windows)
    windows = 2.0 * window_bytes(study)
    effects, effects_on_gpu = (
        effects_bytes(study, keys, gpu=gpu) if causal_passes(study, keys) else 0.0
        for gpu in (False, True)
    )
    known = one + 350.0 * m + 66.0 * n_eval / settings.window_tokens
    later = WRITING_BYTES + windows + max(silent, effects)
    on_gpu = coding_gpu_bytes(recipe, d, m)
    return _Held(
        sae=one,
        waiting=one + HELD_FIRING * run,
        encoding=max(coding_bytes(recipe, d, m) - one, SORTED_FIRING * run),
        described=known + max(DESCRIBED_FIRING * piece, later),
        coding=on_gpu,
        on_gpu=on_gpu + effects_on_gpu,
    )


def effects_bytes(study: SizedStudy, keys: Keys, *, gpu: bool) -> float:
    """The subject, and what asks it: the most of ranks of direct effects, and of changed passes.

    A rank is that of one of three directions among the effects on all tokens; a random one is drawn
    for each latent. Of a pass: activations before the change, logits, and log-probabilities.
    """
    (_, d, m), settings = study.sae(keys), study.config.latents
    size, n_eval = study.sizes[keys["subject"]], study.corpus(keys).eval_tokens
    vocab, places = size.vocab_size, settings.n_sampled * settings.causal_places
    passing = min(m, _firings(study, keys) // settings.min_firings)
    ranked = max(min(EFFECTS if gpu else RANKED, passing * vocab), vocab)
    times = CAUSAL_ON_GPU if gpu else 1
    # The map to the logits, which is centred in a copy.
    direct = 4.0 * vocab * d + max(
        4.0 * vocab * d,
        sae_bytes(d, m) / 2
        + PAIR_BYTES * n_eval
        + EFFECT_BYTES * max(min(EFFECTS, passing * vocab), vocab)
        + RANKED_EFFECT_BYTES * ranked,
    )
    captured = min(times * CAUSAL_TOKENS, n_eval, places * study.context_tokens(keys))
    before = captured * BLOCK_NUMBERS * size.d_model * BYTES[size.dtype]
    logits = min(times * CAUSAL_LOGITS, min(times * CAUSAL_ROWS, 4 * places) * vocab)
    compared = CAUSAL_LOGIT_BYTES * max(logits, 4 * vocab)
    changed = PAIR_BYTES * n_eval + max(before, compared)
    return size.weight_bytes + max(direct, changed)


def causal_passes(study: SizedStudy, keys: Keys) -> list[Work]:
    """Passes in which a direction is taken away, or added, or a token is written; none without any.

    Contexts are cut behind the change, in the middle on average. Passes with a direction begin at
    the site, four for each place; the head reads one token of each.
    """
    settings, size = study.config.latents, study.sizes[keys["subject"]]
    if not has_model(keys["variant"]) or keys["site"] == "embed":
        return []
    context = study.context_tokens(keys)
    places = settings.n_sampled * settings.causal_places
    before = min(size.n_layers, site_layer(keys["site"]) + 1)
    captured = 2.0 * min(places * context, study.corpus(keys).eval_tokens)
    changed = 2 * 4 * places
    head = replace(forward(size, changed, context, blocks=0, head=True), tokens=0)
    return [
        forward(size, captured, context, blocks=before),
        forward(size, changed * context / 2, context // 2, blocks=size.n_layers - before),
        forward(size, places * context / 2, context // 2, blocks=before),
        head,
    ]


def windows_of(study: SizedStudy) -> int:
    """Windows that are cut for a latent."""
    s = study.config.latents
    silent = s.score_silent_windows * len(s.silent_windows)
    return s.explain_active_windows + s.explain_silent_windows + s.score_active_windows + silent


def window_bytes(study: SizedStudy) -> float:
    """The windows of an SAE in memory."""
    settings = study.config.latents
    return settings.n_sampled * windows_of(study) * (12.0 * settings.window_tokens + 60)
