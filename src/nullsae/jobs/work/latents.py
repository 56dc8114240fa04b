"""Formulas of `collect_latents`: its time and memory, from the sizes of a study.

Constants in seconds are for one core of the reference CPU. d is the width of a subject, m the
number of latents of an SAE.
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
# Memory of the libraries that write tables, and gaps between blocks that passes have freed.
WRITING_BYTES = 8e7
# A firing on disk: its position and its value.
SPOOLED_BYTES = 8.0
# Firings per run and per piece to describe; bytes of a firing while it waits, while runs are
# sorted, while it is described, and in the search for silent windows.
RUN_FIRINGS, PIECE_FIRINGS = 2**20, 2**19
HELD_FIRING, SORTED_FIRING, DESCRIBED_FIRING, CO_OCCURRING_FIRING = 10.0, 30.0, 150.0, 30.0
# To ablate latents on a CPU: tokens captured at once, rows of a pass, and its logits; how many
# times more on a GPU; bytes of a logit.
CAUSAL_TOKENS, CAUSAL_ROWS, CAUSAL_LOGITS, CAUSAL_ON_GPU = 2**12, 2**7, 2**21, 4
CAUSAL_LOGIT_BYTES = 60.0
# Effects (of three directions) per product, those ranked at once on a CPU (on a GPU, all), which
# also limits successors and firings; bytes of each, and of a token with its successor.
EFFECTS, EFFECT_BYTES, RANKED, RANKED_EFFECT_BYTES, PAIR_BYTES = 2**21, 12.0, 2**18, 250.0, 40.0


def collect_latents(study: SizedStudy, keys: Keys) -> Work:
    """Return the work for one SAE."""
    return collect_latents_of_all(study, [keys])


def collect_latents_of_all(study: SizedStudy, cells: list[Keys]) -> Work:
    """Return the work for a job's SAEs, in sequence except for shared passes.

    Memory: `_held`; SAEs that share a pass are all in memory, with a run of firings each, until
    they are described in turn. Amounts that depend on the data count at their maximum, because a
    job killed for its memory starts over: k firings per token, all requested latents sampled, and
    as many latents past the filter as there are firings for. On disk: `SPOOLED_BYTES` per firing,
    and as much again while those of an SAE are joined.
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
    """Return the work to encode `eval`, sort firings, cut windows, and run the subject."""
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
    """Bytes of memory for one SAE."""

    sae: float
    waiting: float
    """From its pass until it is described."""
    encoding: float
    """In addition, while it encodes or sorts a run."""
    described: float
    """At most while it is described, including itself."""
    coding: float
    """On a GPU, while it encodes."""
    on_gpu: float
    """On a GPU, later."""


def _firings(study: SizedStudy, keys: Keys) -> int:
    """Return the most firings that an SAE can have in `eval`."""
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
    """Return the memory of the subject, and the larger of ranked direct effects and edited passes.

    Effects of three directions are ranked over all tokens; each latent has its own random one. An
    edited pass has activations before the edit, logits, and log-probabilities.
    """
    (_, d, m), settings = study.sae(keys), study.config.latents
    size, n_eval = study.sizes[keys["subject"]], study.corpus(keys).eval_tokens
    vocab, places = size.vocab_size, settings.n_sampled * settings.causal_places
    passing = min(m, _firings(study, keys) // settings.min_firings)
    ranked = max(min(EFFECTS if gpu else RANKED, passing * vocab), vocab)
    times = CAUSAL_ON_GPU if gpu else 1
    # The map to the logits, and a centred copy.
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
    """Return the passes that ablate or add a direction, or write a token; none without a model.

    Contexts are cut after the edit, in the middle on average. Passes with a direction start at the
    site, four per place; the head reads one token of each.
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
    """Return the number of windows cut for a latent."""
    s = study.config.latents
    silent = s.score_silent_windows * len(s.silent_windows)
    return s.explain_active_windows + s.explain_silent_windows + s.score_active_windows + silent


def window_bytes(study: SizedStudy) -> float:
    """Return the memory of an SAE's windows."""
    settings = study.config.latents
    return settings.n_sampled * windows_of(study) * (12.0 * settings.window_tokens + 60)
