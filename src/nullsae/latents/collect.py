"""Collection: encode the `eval` split, describe every latent, cut windows for a sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nullsae import tables
from nullsae.activations.store import SiteReader
from nullsae.config import Latents
from nullsae.corpus.store import load_tokens
from nullsae.latents.silent import HardSilence
from nullsae.latents.statistics import Firings, entropy_bits, token_statistics
from nullsae.latents.windows import Grid, assign_pools, draw_windows
from nullsae.params import CollectLatentsParams
from nullsae.randomness import numpy_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.subjects.loading import pick_device

BATCH_TOKENS = 4096


def collect_latents(
    params: CollectLatentsParams,
    *,
    sae: Path,
    activations: Path,
    tokens: Path,
    latents: Path,
    windows: Path,
    coverage: Path,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Write the tables `latents` (every latent), `windows` (sampled ones) and `coverage`.

    Args:
        params: the rule's slice of the config.
        sae: `cfg.json` of the SAE.
        activations: manifest of the variant's `eval` activations.
        tokens: manifest of the corpus' `eval` split.
        latents: output table.
        windows: output table.
        coverage: output table.
        report: called with (tokens done, tokens in all).
    """
    torch.set_num_threads(params.compute.threads)
    coder, _ = load_sae(sae)
    reader = SiteReader.open(activations, params.keys.site, key=params.eval_activations_key)
    reader.check()
    corpus = load_tokens(tokens)
    ids = corpus.input_ids.reshape(-1).astype(np.int64)
    firings = encode(coder.to(pick_device(params.compute.device)), reader, ids, report)

    settings, parts = params.latents, params.keys.parts()
    grid = Grid.cut(corpus.document_id, settings.window_tokens)
    # The same pools for every variant: they depend on the corpus alone.
    pools = assign_pools(grid, numpy_generator(params.seed, "pools"))
    active = _active_windows(firings, grid)
    in_pool = [
        np.bincount(active.latent[pools[active.position] == p], minlength=firings.n_latents)
        for p in (0, 1)
    ]
    passes = _filter(firings, in_pool, pools, settings)
    candidates = np.flatnonzero(passes)
    sampler = numpy_generator(params.seed, "sample_latents", *parts)
    size = min(settings.n_sampled, len(candidates))
    sampled = np.sort(sampler.choice(candidates, size=size, replace=False))

    silence = HardSilence(active, grid, pools, ids)
    window_rows: list[dict[str, Any]] = []
    explain_entropy: dict[int, float | None] = {}
    for latent in sampled.tolist():
        dense = np.zeros(len(ids), dtype=np.float32)
        own = firings.of(latent)
        dense[firings.position[own]] = firings.value[own]
        mine = active.of(latent)
        draws = draw_windows(
            active.position[mine],
            active.value[mine],
            pools,
            settings,
            numpy_generator(params.seed, "windows", *parts, latent),
        )
        draws += silence.draw(
            latent,
            draws,
            dense,
            settings,
            numpy_generator(params.seed, "silent_windows", *parts, latent),
        )
        for draw in draws:
            spans = grid.positions(draw.window)
            values, tokens_of = dense[spans], ids[spans]
            if draw.pool == "explain" and draw.active:
                flat = values.ravel().astype(np.float64)
                explain_entropy[latent] = entropy_bits(flat, tokens_of.ravel())
            window_rows += [
                {
                    "latent": latent,
                    "window": int(window),
                    "pool": draw.pool,
                    "active": draw.active,
                    "silent_kind": draw.silent_kind,
                    "quantile": None if draw.quantile is None else int(draw.quantile[row]),
                    "document": int(grid.document[window]),
                    "start": int(spans[row, 0]),
                    "token_ids": tokens_of[row],
                    "activations": values[row],
                }
                for row, window in enumerate(draw.window)
            ]
    tables.write_table(windows, window_rows, tables.cell_schema("windows"))

    documents = corpus.document_id.reshape(-1)[firings.position].astype(np.int64)
    by_token = token_statistics(firings, ids[firings.position])
    # A token lookup has no encoder rows.
    geometry = np.full(firings.n_latents, np.nan)
    if len(coder.w_enc):
        geometry[:] = torch.cosine_similarity(coder.w_enc, coder.w_dec, dim=1).numpy()
    counts, sums, maxima = firings.counts, firings.sums(), firings.maxima()
    n_documents, chosen = firings.distinct(documents), set(sampled.tolist())
    rows = [
        {
            "latent": latent,
            "n_tokens": reader.n_tokens,
            "firings": int(counts[latent]),
            "firing_share": counts[latent] / reader.n_tokens,
            "mean_activation": sums[latent] / counts[latent] if counts[latent] else None,
            "max_activation": maxima[latent],
            "n_documents": int(n_documents[latent]),
            "n_token_types": int(by_token.n_types[latent]),
            "token_entropy_bits": _number(by_token.entropy_bits[latent]),
            "token_entropy_corrected_bits": _number(by_token.corrected_bits[latent]),
            "peak_token_share": _number(by_token.peak_share[latent]),
            "peak_token": int(by_token.peak_token[latent]) if counts[latent] else None,
            "encoder_decoder_cosine": _number(geometry[latent]),
            "explain_pool_active_windows": int(in_pool[0][latent]),
            "score_pool_active_windows": int(in_pool[1][latent]),
            "passes_filter": bool(passes[latent]),
            "sampled": latent in chosen,
            "explain_token_entropy_bits": explain_entropy.get(latent),
        }
        for latent in range(firings.n_latents)
    ]
    tables.write_table(latents, rows, tables.cell_schema("latents"))
    covered = {
        "n_tokens": reader.n_tokens,
        "n_latents": firings.n_latents,
        "n_alive": int((counts > 0).sum()),
        "n_pass": len(candidates),
        "pass_share": len(candidates) / firings.n_latents,
        "n_sampled": size,
        "n_windows": int((pools >= 0).sum()),
        "n_windows_across_documents": int((pools < 0).sum()),
    }
    tables.write_table(coverage, [covered], tables.cell_schema("coverage"))


def encode(
    sae: Autoencoder,
    reader: SiteReader,
    token_ids: np.ndarray,
    report: Callable[[int, int], None] | None = None,
) -> Firings:
    """All firings of an SAE over a split, whose token ids are int64 [n_tokens] by position."""
    ids = torch.from_numpy(token_ids)
    latent, position, value = [], [], []
    done = 0
    for x, at in reader.batches(BATCH_TOKENS):
        values, indices = (t.cpu() for t in sae.encode(x.to(sae.w_dec.device), ids[at]))
        fires = values > 0
        latent.append(indices[fires].numpy())
        position.append(at[:, None].expand_as(indices)[fires].numpy())
        value.append(values[fires].numpy())
        done += len(x)
        if report is not None:
            report(done, reader.n_tokens)
    return Firings.sort(
        np.concatenate(latent), np.concatenate(position), np.concatenate(value), sae.n_latents
    )


def _active_windows(firings: Firings, grid: Grid) -> Firings:
    """Per latent the windows in which it fires, with its peak there; `position` is the window."""
    window = grid.window_of(firings.position)
    inside = window >= 0
    latent, window, value = firings.latent[inside], window[inside], firings.value[inside]
    pairs, inverse = np.unique(latent * grid.n_windows + window, return_inverse=True)
    peak = np.zeros(len(pairs), dtype=np.float32)
    np.maximum.at(peak, inverse, value)
    return Firings(pairs // grid.n_windows, pairs % grid.n_windows, peak, firings.n_latents)


def _filter(
    firings: Firings, in_pool: list[np.ndarray], pools: np.ndarray, settings: Latents
) -> np.ndarray:
    """Which latents fire often enough, and have windows of both kinds in both pools."""
    passes = firings.counts >= settings.min_firings
    for pool, active in enumerate(in_pool):
        silent = int((pools == pool).sum()) - active
        passes &= (active >= settings.min_pool_windows) & (silent >= settings.min_pool_windows)
    return passes


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
