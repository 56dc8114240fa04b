"""Captures the activations of all sites in one forward pass over a split."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nullsae.activations.layout import SplitJob
from nullsae.activations.passes import ModelRows, ShardRows, buffers, capture_contexts
from nullsae.activations.preflight import CaptureClock, check_disk
from nullsae.activations.shards import finished_shards, left_over
from nullsae.activations.store import SiteWriter
from nullsae.config.parse import check_sites
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.core.locking import alone_at
from nullsae.jobs.activations import CacheActivationsParams
from nullsae.jobs.work.making import ROW_BYTES
from nullsae.subjects.loading import DTYPES, Subject, shared_subject
from nullsae.subjects.site_gates import verify_sites

# Shards in memory: one is captured while the previous one is written.
N_HELD = 2


@dataclass(frozen=True)
class Portion:
    """The shards that one of several jobs captures from the same split."""

    index: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Portion:
        """Parse `2/8`, the third of eight; raise a `UserError` for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise UserError(f"--portion: {text!r} is not one of 0/N to N-1/N, such as 0/4")
        return cls(int(found[1]), int(found[2]))

    @property
    def manifest(self) -> str:
        """Name of the file that marks the portion as done."""
        return f"portion-{self.index}-of-{self.n}.json"

    def among(self, n_shards: int) -> range:
        """Return its shards' indices among `n_shards`; none if there are fewer shards than jobs."""
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
    """Capture all sites of a split that are not complete yet.

    Complete shards of the same provenance are kept, even if a killed run, or damage to other
    shards, left their site incomplete: adding a site, or running again, computes only what is
    missing, and gives the same bytes.

    If `params.keep` is false, shards contain norms and positions alone, and the manifests describe
    how to compute the activations again when they are read (`passes`).

    Memory: two shards, 2 * n * (sum of the sites' widths) * bytes of the storage type with
    n = `shard_tokens`, plus one forward pass; a thread writes one shard while the other is
    captured. After two batches, a line is logged with the tokens, bytes and time of the whole job.

    Args:
        params: the rule's slice of the config.
        split: `sae_train` (tokens permuted within shards) or `eval` (in order).
        model: `recipe.json` of the variant.
        tokens: manifest of the corpus' split.
        output: the split's folder; its `manifest.json` is written last.
        portion: capture only these shards, and write only the portion's manifest. Jobs of other
            portions may run at the same time. A later job without a portion reuses their shards
            and only writes the other manifests.
        progress: called with (tokens done, tokens in total).

    Returns:
        The sites that were not complete before.

    Raises:
        UserError: too little disk space, a site beyond the last block, activations that are not
            finite, a file that cannot be written, or another process that has been capturing the
            same for more than a minute. Finished shards are kept.
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
    # The sites that lack each shard.
    todo = {i: [s for s in sites if kept[s].get(i) != tokens[i]] for i in own}
    todo = {index: lacking for index, lacking in todo.items() if lacking}
    keep = {site: [i for i in own if site not in todo.get(i, ())] for site in sites}
    if todo:
        subject = shared_subject(model, device_of(params.compute.device))
        check_sites(tuple(sites), len(subject.blocks), where="--params: sites")
        verify_sites(subject, sites, where="--params: sites")
        item = DTYPES[params.dtype].itemsize if params.keep else 0
        row_bytes = {site: subject.width(site) * item + ROW_BYTES for site in sites}
        n_bytes = sum(
            tokens[i] * row_bytes[site] for i, lacking in todo.items() for site in lacking
        )
        stale = [f for s in sites for f in left_over(job.folder(s), keep=keep[s], among=among)]
        check_disk(job.output, n_bytes, freed=sum(file.stat().st_size for file in stale))
    again = _again(job, model)
    writers = {
        site: SiteWriter(
            job.folder(site),
            dtype=params.dtype,
            key=params.shards_key,
            keep=keep[site],
            among=among,
            again=job.again(partial(again, site=site)),
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
        made = job.made_from(batch_contexts=params.batch_contexts)
        more = {} if params.keep else {"made_from": made}
        for site, writer in writers.items():
            job.finish_site(writer, site, **more)


def _again(job: SplitJob[CacheActivationsParams], model: Path) -> Callable[..., Tensor]:
    """Return a function that runs the passes of a shard again, for one `site`."""

    def rows(index: int, site: str) -> Tensor:
        device, ids = device_of(job.params.compute.device), torch.from_numpy(job.corpus.input_ids)
        dtype, n = DTYPES[job.params.dtype], job.params.batch_contexts
        source = ModelRows(model, device, ids, job.split, n, dtype)
        made = ShardRows(source, job.params.seed, job.split, ids.shape[1], job.shards)
        return made.rows(index, [site])[site]

    return rows


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
        """Wait until at most so many shards are unwritten; raise the writer's errors."""
        while writing and (len(writing) > at_most or writing[0].done()):
            writing.popleft().result()

    def after_batch(context: int) -> None:
        wait(at_most=N_HELD)
        clock.reach(context * context_tokens)

    rooms = [
        buffers(subject, len(shards[0]) * context_tokens, list(writers), dtype)
        for _ in range(min(N_HELD, len(todo)))
    ]
    # On exit, even after an error, it finishes writing, so that captured shards are not lost.
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as pool:
        for turn, (index, lacking) in enumerate(todo.items()):
            # The previous shard in this buffer must be written by now.
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
