"""Captures the activations of all sites in one forward pass over a split."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from nullsae.activations.layout import (
    finish_site,
    shard_contexts,
    shard_rows,
    with_key,
    write_split_manifest,
)
from nullsae.activations.preflight import POSITION_BYTES, CaptureClock, check_disk
from nullsae.activations.shards import finished_shards, left_over
from nullsae.activations.store import SiteWriter, is_complete
from nullsae.config.parse import check_sites
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.corpus.store import load_tokens
from nullsae.jobs.activations import CacheActivationsParams
from nullsae.subjects.loading import DTYPES, Subject, check_sites_add_up, load_subject, pick_device

# Shards in memory: one is captured while the one before it is written.
N_HELD = 2


@dataclass(frozen=True)
class Portion:
    """The shards that one of several jobs captures, of the same split."""

    index: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Portion:
        """From `2/8`, the third of eight.

        Raises:
            UserError: anything else.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise UserError(f"--portion: {text!r} is not one of 0/N to N-1/N, such as 0/4")
        return cls(int(found[1]), int(found[2]))

    @property
    def manifest(self) -> str:
        """Name of the file that says that the portion is done."""
        return f"portion-{self.index}-of-{self.n}.json"

    def among(self, n_shards: int) -> range:
        """Indices of its shards, of `n_shards`; none where there are fewer shards than jobs."""
        return range(self.index * n_shards // self.n, (self.index + 1) * n_shards // self.n)


def cache_activations(
    params: CacheActivationsParams,
    *,
    split: str,
    model: Path,
    tokens: Path,
    output: Path,
    portion: Portion | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Capture all sites of a split that are not there yet.

    A site whose manifest has this provenance and whose shards are whole is left alone, and so is a
    whole shard of a site that a killed run, or a damage to other shards, left incomplete: adding a
    site, or running again, computes only what is missing, to the same bytes.

    In memory are two shards, 2 * n * (sum of the sites' widths) * bytes of the storage type with
    n = `shard_tokens`, beside what one forward pass takes, whatever the number of tokens: one is
    captured while a thread writes the other. After two batches a line is logged with tokens, bytes
    and the time that all of it will take.

    Args:
        params: the rule's slice of the config.
        split: `sae_train` (tokens permuted within shards) or `eval` (in order).
        model: `recipe.json` of the variant.
        tokens: manifest of the corpus' split.
        output: the split's folder; its `manifest.json` is written last.
        portion: capture these shards only, and write no manifest but the portion's own. Jobs of
            other portions may run at the same time. Shards that they made count like those of a
            killed run: the job without a portion that follows them has only manifests to write.
        progress: called with (tokens done, tokens in all).

    Returns:
        The sites that were not complete before.

    Raises:
        UserError: not enough disk, a site beyond the last block, activations not finite, or a
            file that cannot be written. Shards that were finished stay.
    """
    torch.set_num_threads(params.compute.threads)
    folders = {site: output / f"site={site}" for site in params.sites}
    params = with_key(params, split, (model, tokens))
    missing = [s for s, folder in folders.items() if not is_complete(folder, key=params.key)]
    if missing:
        _capture(params, missing, split, model, tokens, output, portion, progress)
    if portion is not None:
        write_json(output / portion.manifest, {"key": params.key, "split": split})
        return missing
    write_split_manifest(output, params.sites, split=split, key=params.key)
    return missing


def _capture(
    params: CacheActivationsParams,
    sites: list[str],
    split: str,
    model: Path,
    tokens: Path,
    output: Path,
    portion: Portion | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    corpus = load_tokens(tokens)
    context_tokens = corpus.input_ids.shape[1]
    shards = shard_contexts(corpus, params.max_tokens, params.shard_tokens)
    own = range(len(shards)) if portion is None else portion.among(len(shards))
    folders = {site: output / f"site={site}" for site in sites}
    kept = {s: finished_shards(folder, key=params.key, among=own) for s, folder in folders.items()}
    # Per shard the sites that lack it.
    todo = {
        index: [s for s in sites if kept[s].get(index) != len(shards[index]) * context_tokens]
        for index in own
    }
    todo = {index: lacking for index, lacking in todo.items() if lacking}
    keep = {site: [i for i in own if site not in todo.get(i, ())] for site in sites}
    among = None if portion is None else own
    if todo:
        subject = load_subject(model, pick_device(params.compute.device))
        check_sites(tuple(sites), len(subject.blocks), where="--params: sites")
        check_sites_add_up(subject, sites, where="--params: sites")
        row_bytes = DTYPES[params.dtype].itemsize
        n_bytes = sum(
            len(shards[index]) * context_tokens * (subject.width(site) * row_bytes + POSITION_BYTES)
            for index, lacking in todo.items()
            for site in lacking
        )
        stale = [f for s in sites for f in left_over(folders[s], keep=keep[s], among=among)]
        check_disk(output, n_bytes, freed=sum(file.stat().st_size for file in stale))
    writers = {
        site: SiteWriter(
            folders[site], dtype=params.dtype, key=params.key, keep=keep[site], among=among
        )
        for site in sites
    }
    if todo:
        n_todo = sum(len(shards[index]) for index in todo) * context_tokens
        where = f"{len(sites)} site{'s' * (len(sites) > 1)}"
        what = f"{output}: {n_todo:,} tokens at {where}, {n_bytes / 1e9:.3f} GB to write"
        total = sum(len(shards[index]) for index in own) * context_tokens
        clock = CaptureClock(what, total, n_todo, subject.device, progress)
        ids = torch.from_numpy(corpus.input_ids)
        _write_shards(params, subject, ids, split, shards, todo, writers, clock)
    if portion is not None:
        return
    for site, writer in writers.items():
        finish_site(writer, params.key, site, split, corpus)


def _write_shards(
    params: CacheActivationsParams,
    subject: Subject,
    ids: Tensor,
    split: str,
    shards: list[range],
    todo: dict[int, list[str]],
    writers: dict[str, SiteWriter],
    clock: CaptureClock,
) -> None:
    """Capture shards, and write each while the next one is captured."""
    context_tokens, dtype = ids.shape[1], DTYPES[params.dtype]

    def write(index: int, found: dict[str, Tensor]) -> None:
        position, order = shard_rows(params.seed, split, index, shards[index], context_tokens)
        for site, values in found.items():
            writers[site].write(index, values, position, order)

    rooms = [
        buffers(subject, len(shards[0]) * context_tokens, list(writers), dtype)
        for _ in range(min(N_HELD, len(todo)))
    ]
    with _Behind() as behind:

        def after_batch(context: int) -> None:
            behind.check(at_most=N_HELD)
            clock.reach(context * context_tokens)

        for turn, (index, lacking) in enumerate(todo.items()):
            # The shard that was last in this room must be written by now.
            behind.check(at_most=N_HELD - 1)
            clock.start(shards[index].start * context_tokens)
            found = capture_contexts(
                subject,
                ids,
                split=split,
                contexts=shards[index],
                batch_contexts=params.batch_contexts,
                sites=lacking,
                dtype=dtype,
                progress=after_batch,
                into=rooms[turn % N_HELD],
            )
            behind.begin(write, index, found)
        behind.check(at_most=0)


class _Behind:
    """A thread that writes one shard while the next is captured."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._jobs: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error too: what was captured need not be captured again.
        self._pool.shutdown()

    def begin(self, write: Callable[[int, dict[str, Tensor]], None], *of: Any) -> None:
        """Queue one shard."""
        self._jobs.append(self._pool.submit(write, *of))

    def check(self, *, at_most: int) -> None:
        """Wait until at most so many shards are not yet written; raise what the writer raised."""
        while self._jobs and (len(self._jobs) > at_most or self._jobs[0].done()):
            self._jobs.popleft().result()


def capture_contexts(
    subject: Subject,
    ids: Tensor,
    *,
    split: str,
    contexts: range,
    batch_contexts: int,
    sites: Sequence[str],
    dtype: torch.dtype,
    progress: Callable[[int], None] | None = None,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run contexts through the subject, batch by batch, each batch once for all sites.

    Each site's values go straight from the pass to their rows, cast on the way; on CUDA they are
    cast there and copied while the next batch runs, if the rows are pinned.

    Args:
        subject: any variant.
        ids: integers [contexts of the split, context_tokens].
        split: the split that they belong to.
        contexts: which of them, as consecutive indices.
        batch_contexts: contexts in one forward pass, counted from the first of `contexts`.
        sites: names of sites.
        dtype: what is stored.
        progress: called after each batch with the index of the context that follows it.
        into: tensors to fill instead of new ones, at least as long as what is returned.

    Returns:
        Per site [len(contexts) * context_tokens, width of the site] in `dtype`, on the CPU, in the
        order of the contexts.
    """
    context_tokens = ids.shape[1]
    n_tokens = len(contexts) * context_tokens
    if into is None:
        into = buffers(subject, n_tokens, sites, dtype)
    found = {site: into[site][:n_tokens] for site in sites}
    devices: set[torch.device] = set()
    for first in range(contexts.start, contexts.stop, batch_contexts):
        batch = range(first, min(first + batch_contexts, contexts.stop))
        rows = slice(*((c - contexts.start) * context_tokens for c in (batch.start, batch.stop)))

        def keep(site: str, x: Tensor, rows: slice = rows) -> None:
            found[site][rows].copy_(x.flatten(0, 1), non_blocking=True)
            devices.add(x.device)

        subject.watch(
            ids[batch.start : batch.stop], split=split, contexts=batch, sites=sites, see=keep
        )
        if progress is not None:
            progress(batch.stop)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return found


def buffers(
    subject: Subject, n_tokens: int, sites: Sequence[str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Room for captured rows, per site [n_tokens, width]; pinned where a GPU fills it."""
    pinned = subject.device.type == "cuda"
    return {
        site: torch.empty(n_tokens, subject.width(site), dtype=dtype, pin_memory=pinned)
        for site in sites
    }
