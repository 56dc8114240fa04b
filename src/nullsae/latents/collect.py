"""Encodes the `eval` split, describes every latent, and cuts windows for a sample.

One pass over the activations writes all firings to disk, sorted by latent (`latents.store`). Each
latent is then described from its own firings, some latents at a time (`latents.describe`). Memory
besides the SAE and the encoder's needs for `BATCH_TOKENS`: `jobs.work.latents`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from nullsae import tables
from nullsae.activations.passes import batches_together, open_site
from nullsae.activations.store import SiteReader
from nullsae.config.latents import Latents
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.core.memory import give_back
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.causal_effects import causal_columns
from nullsae.latents.describe import Described, describe
from nullsae.latents.effects import effect_columns, subject_for_effects
from nullsae.latents.promoted import Lists
from nullsae.latents.sample import WindowRows, activations_in, write_firings
from nullsae.latents.silent import HardSilence
from nullsae.latents.skipped import Activations, Skipped
from nullsae.latents.sorting import Sorting
from nullsae.latents.split import Split
from nullsae.latents.store import Firings, empty_folder
from nullsae.latents.windows import Grid, deal_documents, draw_windows, pools_of, top_windows
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.subjects.loading import Subject

# Rows of the encoder and decoder that are compared at a time.
GEOMETRY_ROWS = 4096
# Why a latent fails the filter, in order of precedence; the names are columns of `coverage`.
REASONS = ("n_too_rare", "n_few_active_windows", "n_few_silent_windows")
PASSES = len(REASONS)


@dataclass(frozen=True)
class OneSae:
    """An SAE whose latents are collected, and where its results go."""

    params: CollectLatentsParams
    sae: Path
    """Its `cfg.json`."""
    latents: Path
    """Table of all latents."""
    windows: Path
    """Table of the sampled latents' windows."""
    coverage: Path
    """Table with one row."""
    firings: Path
    """Firings of the sampled latents (`latents.sample`)."""
    written: Callable[[], None] = lambda: None
    """Called when these files exist, while other SAEs are still pending."""


def collect_latents(
    params: CollectLatentsParams,
    *,
    sae: Path,
    latents: Path,
    windows: Path,
    coverage: Path,
    firings: Path,
    **files: Any,
) -> None:
    """Collect the latents of one SAE; see `collect_together`."""
    collect_together([OneSae(params, sae, latents, windows, coverage, firings)], **files)


def collect_together(
    saes: Sequence[OneSae],
    *,
    activations: Path,
    tokens: Path,
    model: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the tables and firings of each SAE.

    All SAEs are of one model, and one pass over the activations serves all of them. Temporary
    files, 16 bytes per firing and at most 24 per active window, are in a folder next to `latents`.

    Args:
        saes: at any sites.
        activations: manifest of the variant's `eval` activations.
        tokens: manifest of the corpus' `eval` split.
        model: the variant's `recipe.json`, if it has weights.
        progress: called with (tokens done, tokens in total), over all sites.

    Raises:
        UserError: an input is missing, damaged or from another config, or the disk is full.
    """
    torch.set_num_threads(saes[0].params.compute.threads)
    device, split = device_of(saes[0].params.compute.device), Split.open(tokens)
    readers: dict[str, SiteReader] = {}
    with ExitStack() as folders:
        left = []
        for one in saes:
            settings, site = one.params.latents, one.params.keys.site
            coder, _ = load_sae(one.sae)
            if site not in readers:
                readers[site] = _opened(one.params, activations, split, device)
            folder = one.latents.with_name(f".{one.latents.stem}.partial")
            folder = folders.enter_context(empty_folder(folder))
            skipped = Skipped.of(split, settings, readers[site])
            left.append((one, Sorting(coder.to(device), skipped, folder)))
        of_site: dict[str, list[Sorting]] = {}
        for one, sorting in left:
            of_site.setdefault(one.params.keys.site, []).append(sorting)
        done, total = 0, sum(reader.n_tokens for reader in readers.values())
        for site, counts, x, _, at in batches_together({s: (r, r) for s, r in readers.items()}):
            if not counts:
                continue
            for sorting in of_site[site]:
                sorting.add(x, at)
            done += len(at)
            if progress is not None:
                progress(done, total)
        del of_site
        while left:  # frees each SAE's memory before describing the next
            one, sorting = left.pop(0)
            reader = readers[one.params.keys.site]
            _write(one, describe_all(one.params, sorting, reader, model, reader.manifest["dtype"]))
            give_back()
            shutil.rmtree(sorting.folder, ignore_errors=True)
            one.written()


def _opened(
    params: CollectLatentsParams, manifest: Path, split: Split, device: torch.device
) -> SiteReader:
    """Open the activations of an SAE's site, and check that they are those of the split."""
    key = params.eval_activations_key
    reader = open_site(manifest, params.keys.site, key=key, device=device)
    reader.check()
    n_captured = reader.n_tokens + reader.n_excluded
    if n_captured != split.n_tokens:
        raise UserError(
            f"{manifest}: activations of {n_captured} tokens, but {split.manifest} has "
            f"{split.n_tokens}; rebuild them with: {rebuild_command(manifest)}"
        )
    return reader


def _write(one: OneSae, found: Collected) -> None:
    tables.write_table(one.windows, found.windows, tables.cell_schema("windows"))
    write_firings(one.firings, found.sampled, found.firings)
    tables.write_table(one.latents, found.latents, tables.cell_schema("latents"))
    tables.write_table(one.coverage, [found.coverage], tables.cell_schema("coverage"))


class Collected(NamedTuple):
    """Tables about the latents of one SAE."""

    latents: pa.Table
    """All latents; see `tables.cells`, like the next two."""
    windows: pa.Table
    """Windows of the sampled latents."""
    coverage: dict[str, Any]
    """One row."""
    sampled: np.ndarray
    """int64 [n], ascending."""
    firings: Firings
    """Firings of all latents, memory-mapped."""


def collect(
    params: CollectLatentsParams,
    coder: Autoencoder,
    reader: Activations,
    split: Split,
    model: Path | Subject | None,
    folder: Path,
    dtype: str,
) -> Collected:
    """Collect latents in one pass over the activations of a split, without writing tables.

    `coder` is on the device that computes, `model` is as for `subject_for_effects`, and `dtype` is
    that of the activations. Temporary files go to `folder`, which the caller deletes.
    """
    sorting = Sorting(coder, Skipped.of(split, params.latents, reader), folder)
    for x, at in reader.batches():
        sorting.add(x, at)
    return describe_all(params, sorting, reader, model, dtype)


def describe_all(
    params: CollectLatentsParams,
    sorting: Sorting,
    reader: Activations,
    model: Path | Subject | None,
    dtype: str,
) -> Collected:
    """Describe the latents whose firings are sorted; arguments as for `collect`."""
    settings, skipped, coder = params.latents, sorting.skipped, sorting.coder
    split, folder, found = skipped.split, sorting.folder, sorting.sorted()
    give_back()
    grid = Grid.cut(split.document.reshape(-1, split.context_tokens), settings.window_tokens)
    # The same pools for every variant, because they depend only on the corpus.
    dealt = deal_documents(grid, numpy_generator(params.seed, "pools"))
    pools = pools_of(grid.document, dealt)
    known = describe(found, split, grid, pools, dealt, settings, folder, reader.n_tokens)
    reasons = _reasons(known, settings)
    candidates = np.flatnonzero(reasons == PASSES)
    sampler = numpy_generator(params.seed, "sample_latents", *params.keys.parts())
    size = min(settings.n_sampled, len(candidates))
    sampled = np.sort(sampler.choice(candidates, size=size, replace=False))
    rows, entropy = draw_sample(sampled, found, known, skipped, pools, dealt, params)
    give_back()
    numbers, lists, why_none = _effects(
        *(params, model, coder, dtype, found, known, skipped, candidates, sampled)
    )
    give_back()
    described = _latent_columns(
        *({**known.statistics, **numbers}, known.active, coder, reader.n_tokens),
        *(reasons == PASSES, sampled, entropy, lists),
    )
    covered = {
        "n_tokens": split.n_tokens,
        "n_latents": found.n_latents,
        "n_alive": int((known.statistics["firings"] > 0).sum()),
        "n_pass": len(candidates),
        "pass_share": len(candidates) / found.n_latents,
        "n_sampled": size,
        "n_windows": int((pools >= 0).sum()),
        "n_windows_across_documents": int((pools < 0).sum()),
        "n_tokens_skipped": int(sorting.n_skipped[0]),
        "n_tokens_excluded": reader.n_excluded,
        "n_firings_skipped": int(sorting.n_skipped[1]),
        **{name: int((reasons == code).sum()) for code, name in enumerate(REASONS)},
        "n_windows_too_short": known.n_too_short,
        **why_none,
    }
    return Collected(pa.table(described), rows.table(), covered, sampled, found)


def _effects(
    params: CollectLatentsParams,
    model: Path | Subject | None,
    coder: Autoencoder,
    dtype: str,
    firings: Firings,
    known: Described,
    skipped: Skipped,
    passing: np.ndarray,
    sampled: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, Lists], dict[str, str | None]]:
    """Compute the columns of `latents` that need the subject, as numbers and lists.

    Also returns why there are none, if so.
    """
    site = coder.writes_at(params.keys.site)
    subject, no_subject = subject_for_effects(model, site, coder.w_dec.device)
    direct = effect_columns(
        *(params, subject, coder.w_dec, firings, skipped.split, passing, sampled), site=site
    )
    give_back()
    causal, no_causal = causal_columns(
        params,
        subject=subject,
        coder=coder,
        dtype=dtype,
        firings=firings,
        known=known,
        skipped=skipped,
        sampled=sampled,
    )
    why_none = {
        "no_effects": no_subject or direct.reason,
        "no_causal_effects": no_subject or no_causal,
    }
    return {**direct.numbers, **causal}, direct.lists, why_none


def _reasons(known: Described, settings: Latents) -> np.ndarray:
    """Return the first of `REASONS` that applies to each latent, or `PASSES`: int64 [n_latents]."""
    least = settings.min_pool_windows
    wrong = (
        known.statistics["firings"] < settings.min_firings,
        (known.active < least).any(axis=0),
        (known.silent < least).any(axis=0),
    )
    first: np.ndarray = np.argmax([*wrong, np.ones(len(known.active[0]), dtype=bool)], axis=0)
    return first


def draw_sample(
    sampled: np.ndarray,
    firings: Firings,
    known: Described,
    skipped: Skipped,
    pools: np.ndarray,
    dealt: np.ndarray,
    params: CollectLatentsParams,
) -> tuple[WindowRows, dict[int, float | None]]:
    """Draw the windows of the sampled latents (int64 [n], ascending).

    `pools` (int8 [n_windows]) and `dealt` (int8 [n_documents]) are as for `describe`. Returns rows
    of the table `windows`, and for each latent the entropy in bits over its explaining windows.
    """
    settings, grid, split = params.latents, known.grid, skipped.split
    silence = HardSilence(known.cells, grid, pools, split)
    rows = WindowRows(split, settings.window_tokens, skipped.at)
    entropy: dict[int, float | None] = {}
    for latent in sampled.tolist():
        own = firings.of(latent)
        position, value = firings.position[own], firings.value[own]
        candidates = known.candidates(latent)
        silent = pools.copy()
        silent[known.cells.position[known.cells.of(latent)]] = -1
        of_candidates = pools_of(split.document[candidates.start], dealt)
        generator = numpy_generator(params.seed, "windows", *params.keys.parts(), latent)
        draws = draw_windows(candidates, of_candidates, silent, grid, settings, generator)
        if set(settings.silent_windows) != {"random"}:
            generator = numpy_generator(params.seed, "silent_windows", *params.keys.parts(), latent)
            activations = partial(activations_in, position, value, length=settings.window_tokens)
            draws += silence.draw(latent, draws, activations, settings, generator)
        draws.append(top_windows(candidates, settings.top_windows))
        entropy[latent] = rows.add(latent, draws, position, value)
    return rows, entropy


def _latent_columns(
    statistics: dict[str, np.ndarray],
    active: np.ndarray,
    coder: Autoencoder,
    n_tokens: int,
    passes: np.ndarray,
    sampled: np.ndarray,
    entropy: dict[int, float | None],
    lists: dict[str, Lists],
) -> dict[str, pa.Array]:
    """Return the columns of the table `latents`."""
    n = len(passes)
    shown = np.full(n, np.nan)
    shown[sampled] = np.array([entropy[latent] for latent in sampled.tolist()], dtype=np.float64)
    cosine = np.full(n, np.nan)
    # A token lookup has no encoder rows; those of a transcoder are in another space.
    for start in range(0, 0 if coder.transcodes else len(coder.w_enc), GEOMETRY_ROWS):
        rows = slice(start, start + GEOMETRY_ROWS)
        found = torch.cosine_similarity(coder.w_enc[rows], coder.w_dec[rows], dim=1)
        cosine[rows] = found.cpu().numpy()
    columns = {
        "latent": np.arange(n),
        "n_tokens": np.full(n, n_tokens),
        **statistics,
        "encoder_decoder_cosine": cosine,
        "explain_pool_active_windows": active[0],
        "score_pool_active_windows": active[1],
        "passes_filter": passes,
        "sampled": np.isin(np.arange(n), sampled),
        "explain_token_entropy_bits": shown,
    }
    made = {}
    for field in tables.cell_schema("latents"):
        if field.name in lists:
            made[field.name] = pa.array(lists[field.name], field.type)
            continue
        values, missing = columns[field.name], None
        if field.nullable:
            missing = values < 0 if field.name == "peak_token" else np.isnan(values)
        made[field.name] = pa.array(values, field.type, mask=missing)
    return made
