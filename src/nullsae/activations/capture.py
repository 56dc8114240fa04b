"""Captures the activations of all sites in one forward pass over a split."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullsae.activations.layout import SplitJob
from nullsae.activations.preflight import CaptureClock, check_disk
from nullsae.activations.shards import finished_shards, left_over
from nullsae.activations.store import SiteWriter
from nullsae.config.parse import check_sites
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.core.locking import alone_at
from nullsae.jobs.activations import CacheActivationsParams
from nullsae.jobs.work.making import ROW_BYTES
from nullsae.subjects.loading import DTYPES, Subject, load_subject, pick_device
from nullsae.subjects.site_gates import verify_sites

# Shards in memory: one is captured while the one before it is written.
N_HELD = 2


@dataclass(frozen=True)
class Portion:
    """The shards that one of several jobs captures, of the same split."""

    index: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Portion:
        """From `2/8`, the third of eight; `UserError` for anything else."""
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

    Whole shards of this provenance are left alone, also where a killed run, or a damage to others,
    left their site incomplete: adding a site, or running again, computes only what is missing, to
    the same bytes.

    In memory are two shards, 2 * n * (sum of the sites' widths) * bytes of the storage type with
    n = `shard_tokens`, beside what one forward pass takes: one is captured while a thread writes
    the other. After two batches a line is logged with tokens, bytes and the time of all of it.

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
        UserError: not enough disk, a site beyond the last block, activations not finite, a file
            that cannot be written, or another process that captures the same for longer than a
            minute. Shards that were finished stay.
    """
    torch.set_num_threads(params.compute.threads)
    own = "manifest.json" if portion is None else portion.manifest
    with alone_at([SplitJob.lock(output, own)]):
        job = SplitJob(params, split, model, tokens, output)
        if job.missing:
            _capture(job, model, portion, progress)
        if portion is None:
            job.finish()
        else:
            write_json(output / own, {"key": job.params.key, "split": split})
    return job.missing


def _capture(
    job: SplitJob[CacheActivationsParams],
    model: Path,
    portion: Portion | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    params, sites, shards = job.params, job.missing, job.shards
    tokens = [len(contexts) * job.corpus.input_ids.shape[1] for contexts in shards]
    own = range(len(shards)) if portion is None else portion.among(len(shards))
    among = None if portion is None else own
    kept = {s: finished_shards(job.folder(s), key=params.shards_key, among=own) for s in sites}
    # Per shard the sites that lack it.
    todo = {i: [s for s in sites if kept[s].get(i) != tokens[i]] for i in own}
    todo = {index: lacking for index, lacking in todo.items() if lacking}
    keep = {site: [i for i in own if site not in todo.get(i, ())] for site in sites}
    if todo:
        subject = load_subject(model, pick_device(params.compute.device))
        check_sites(tuple(sites), len(subject.blocks), where="--params: sites")
        verify_sites(subject, sites, where="--params: sites")
        item = DTYPES[params.dtype].itemsize
        row_bytes = {site: subject.width(site) * item + ROW_BYTES for site in sites}
        n_bytes = sum(
            tokens[i] * row_bytes[site] for i, lacking in todo.items() for site in lacking
        )
        stale = [f for s in sites for f in left_over(job.folder(s), keep=keep[s], among=among)]
        check_disk(job.output, n_bytes, freed=sum(file.stat().st_size for file in stale))
    writers = {
        site: SiteWriter(
            job.folder(site),
            dtype=params.dtype,
            key=params.shards_key,
            keep=keep[site],
            among=among,
        )
        for site in sites
    }
    if todo:
        n_todo = sum(tokens[index] for index in todo)
        where = f"{len(sites)} site{'s' * (len(sites) > 1)}"
        what = f"{job.output}: {n_todo:,} tokens at {where}, {n_bytes / 1e9:.3f} GB to write"
        total = sum(tokens[index] for index in own)
        clock = CaptureClock(what, total, n_todo, subject.device, progress)
        _write_shards(job, subject, todo, writers, clock)
    if portion is None:
        for site, writer in writers.items():
            job.finish_site(writer, site)


def _write_shards(
    job: SplitJob[CacheActivationsParams],
    subject: Subject,
    todo: dict[int, list[str]],
    writers: dict[str, SiteWriter],
    clock: CaptureClock,
) -> None:
    """Capture shards, and write each while the next one is captured."""
    params, shards, dtype = job.params, job.shards, DTYPES[job.params.dtype]
    ids = torch.from_numpy(job.corpus.input_ids)
    context_tokens = ids.shape[1]
    writing: deque[Future[None]] = deque()

    def write(index: int, found: dict[str, Tensor]) -> None:
        position, order = job.rows(index)
        for site, values in found.items():
            writers[site].write(index, values, position, order)

    def wait(*, at_most: int) -> None:
        """Until at most so many shards are not yet written; raise what the writer raised."""
        while writing and (len(writing) > at_most or writing[0].done()):
            writing.popleft().result()

    def after_batch(context: int) -> None:
        wait(at_most=N_HELD)
        clock.reach(context * context_tokens)

    rooms = [
        buffers(subject, len(shards[0]) * context_tokens, list(writers), dtype)
        for _ in range(min(N_HELD, len(todo)))
    ]
    # It ends after its work, after an error too: what was captured need not be captured again.
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as pool:
        for turn, (index, lacking) in enumerate(todo.items()):
            # The shard that was last in this room must be written by now.
            wait(at_most=N_HELD - 1)
            clock.start(shards[index].start * context_tokens)
            found = capture_contexts(
                subject,
                ids,
                split=job.split,
                contexts=shards[index],
                batch_contexts=params.batch_contexts,
                sites=lacking,
                dtype=dtype,
                progress=after_batch,
                into=rooms[turn % N_HELD],
            )
            writing.append(pool.submit(write, index, found))
        wait(at_most=0)


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

    Values go straight from the pass to their rows, cast on the way; on CUDA they are cast there and
    copied while the next batch runs, if the rows are pinned.

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
    keys: dict[str, Any] = {"dtype": dtype, "pin_memory": subject.device.type == "cuda"}
    return {site: torch.empty(n_tokens, subject.width(site), **keys) for site in sites}
