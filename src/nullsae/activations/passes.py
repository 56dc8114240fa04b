"""Activations that are computed when they are read, and stored nowhere.

A site captured without its activations has an ordinary manifest, and shards with only norms and
positions. Its reader runs the same contexts in the same batches again, rounds to the same type and
permutes alike: the result is, bit for bit, what a cache would contain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from nullsae.activations.batches import Batcher
from nullsae.activations.gaussian import Gaussian, fit_moments
from nullsae.activations.layout import shard_contexts, shard_order
from nullsae.activations.store import BATCH_TOKENS, SiteReader
from nullsae.core.errors import UserError
from nullsae.corpus.store import load_tokens
from nullsae.jobs.keys import CellKeys, ModelKeys
from nullsae.subjects.loading import DTYPES, Subject, shared_subject

K = TypeVar("K")


class Source(Protocol):
    """Computes activations of contexts, per site [tokens, width] in the storage type."""

    def __call__(self, *, contexts: range, sites: Sequence[str]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class ModelRows:
    """Activations from forward passes of a variant, all sites in one pass."""

    model: Path
    """Its `recipe.json`."""
    device: torch.device
    ids: Tensor
    """Integers [contexts of the split, context_tokens]."""
    split: str
    batch_contexts: int
    dtype: torch.dtype

    def __call__(self, *, contexts: range, sites: Sequence[str]) -> dict[str, Tensor]:
        return capture_contexts(
            shared_subject(self.model, self.device),
            self.ids,
            split=self.split,
            contexts=contexts,
            batch_contexts=self.batch_contexts,
            sites=sites,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class SampledRows:
    """Samples of Gaussians fitted to other activations; each is fitted when first needed."""

    fitted: Callable[[str], SiteReader]
    """Opens a site's activations to fit to."""
    device: torch.device
    keys: ModelKeys
    seed: int
    split: str
    context_tokens: int
    dtype: torch.dtype
    gaussians: dict[str, Gaussian] = field(default_factory=dict)

    def __call__(self, *, contexts: range, sites: Sequence[str]) -> dict[str, Tensor]:
        found = {}
        for site in sites:
            if site not in self.gaussians:
                moments = fit_moments(self.fitted(site), self.device)
                self.gaussians[site] = Gaussian.fitted_to(moments, self.device)
            of = (self.context_tokens, self.seed, self.keys, site, self.split)
            samples = self.gaussians[site].contexts(contexts, *of)
            found[site] = torch.cat([x.to("cpu", self.dtype) for x in samples])
        return found


@dataclass(frozen=True)
class ShardRows:
    """Computes what the shards of a split would contain: a `batches.Live`."""

    source: Source
    seed: int
    split: str
    context_tokens: int
    shards: list[range]
    """Contexts of each shard."""

    def rows(self, index: int, sites: Sequence[str]) -> dict[str, Tensor]:
        """Compute one shard in its order: per site [n, width], in the storage type."""
        contexts = self.shards[index]
        found = self.source(contexts=contexts, sites=sorted(sites))
        if self.split != "sae_train":  # in the order of the contexts
            return found
        order = shard_order(self.seed, self.split, index, len(contexts) * self.context_tokens)
        return {site: x.index_select(0, order.to(x.device)) for site, x in found.items()}


def open_site(
    manifest: Path, site: str, *, key: str = "", device: torch.device | None = None
) -> SiteReader:
    """Open a site of a captured split, whether its activations are stored or recomputed.

    Args:
        manifest: of the split.
        site: its name.
        key: as for `SiteReader.open`.
        device: where passes run; by default the CPU.

    Raises:
        UserError: as `SiteReader.open`.
    """
    reader = SiteReader.open(manifest, site, key=key)
    if "made_from" not in reader.manifest:
        return reader
    names = ("made_from", "split", "dtype", "tokens_checksum", "fitted")
    made = {name: reader.manifest.get(name) for name in names}
    if made["fitted"] is not None:
        made["fitted"] = made["fitted"]["key"]
    text = json.dumps(made, sort_keys=True)
    return replace(reader, live=_live(manifest.parent, text, device or torch.device("cpu")))


@lru_cache(maxsize=8)
def _live(folder: Path, text: str, device: torch.device) -> ShardRows:
    """Return one object for all sites of a split, so that one pass can serve them together."""
    made = json.loads(text)
    of = made["made_from"]
    source_file, tokens = (
        Path(os.path.normpath(folder.absolute() / of[name])) for name in ("source", "tokens")
    )
    corpus = load_tokens(tokens)
    if corpus.manifest["tokens_checksum"] != made["tokens_checksum"]:
        raise UserError(
            f"{tokens}: not the tokens from which the activations in {folder} were made"
        )
    length = int(corpus.input_ids.shape[1])
    split, dtype = made["split"], DTYPES[made["dtype"]]
    source: Source
    if "keys" in of:

        def fitted(site: str) -> SiteReader:
            return open_site(source_file, site, key=made["fitted"] or "", device=device)

        keys = ModelKeys(**of["keys"])
        source = SampledRows(fitted, device, keys, of["seed"], split, length, dtype)
    else:
        ids = torch.from_numpy(corpus.input_ids)
        source = ModelRows(source_file, device, ids, split, of["batch_contexts"], dtype)
    shards = shard_contexts(corpus, of["max_tokens"], of["shard_tokens"])
    return ShardRows(source, of["seed"], split, length, shards)


def group_of(
    manifest: Path, keys: CellKeys, key: str, *, sites_together: bool = True
) -> tuple[str, ...]:
    """Return a key shared by the SAEs that can share passes; unique if shards are on disk.

    Args:
        manifest: of the split.
        keys: of the SAE.
        key: as for `open_site`, including its errors.
        sites_together: whether all sites of a model share passes.
    """
    of_site = (keys.variant, keys.site)
    if "made_from" not in SiteReader.open(manifest, keys.site, key=key).manifest:
        return (*of_site, keys.sae, str(keys.seed))
    return of_site[:1] if sites_together else of_site


def stored_together(
    readers: Mapping[str, SiteReader], index: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield one shard of several sites of a split; sites not on disk are computed in one pass.

    Yields:
        (site, activations [n, d_model] in the storage dtype, position int64 [n]).
    """
    passes = {id(r.live): r.live for r in readers.values() if r.live is not None}
    for key, live in passes.items():
        sites = [site for site, reader in readers.items() if id(reader.live) == key]
        found = live.rows(index, sites)
        for site in sites:
            yield site, *readers[site].checked(index, found.pop(site))
    for site, reader in readers.items():
        if reader.live is None:
            yield site, *reader.stored(index)


def batches_together(
    pairs: Mapping[K, tuple[SiteReader, SiteReader]],
) -> Iterator[tuple[K, bool, Tensor, Tensor, Tensor]]:
    """Yield all tokens of a split at pairs of sites (input, target), in one pass.

    For an SAE, both are the same reader (`outputs.outputs_of`). Tokens that count at the first site
    and those that do not come in separate batches, each the same as from `SiteReader.batches`.

    Yields:
        (key of the pair, whether the tokens count, activations float32 [n, d_model] of both sites,
        position int64 [n]).
    """
    cut = {(key, counts): Batcher(BATCH_TOKENS) for key in pairs for counts in (True, False)}
    readers = {str(r.manifest["site"]): r for pair in pairs.values() for r in pair}
    names = {key: [str(r.manifest["site"]) for r in pair] for key, pair in pairs.items()}
    n_shards = next(iter(readers.values())).n_shards if readers else 0
    for index in range(n_shards):
        found = {}
        for site, x, at in stored_together(readers, index):
            found[site], position = x, at
        for key, (reader, _) in pairs.items():
            x, y = (found[name] for name in names[key])
            kept = reader.kept(index) if reader.n_excluded else None
            for counts in (True, False) if kept is not None else (True,):
                rows = slice(None) if kept is None else kept if counts else ~kept
                sites = (x[rows],) if names[key][0] == names[key][1] else (x[rows], y[rows])
                for batch in cut[key, counts].cut(*sites, position[rows]):
                    yield key, counts, batch[0], batch[-2], batch[-1]
    for (key, counts), batcher in cut.items():
        for batch in batcher.rest():
            yield key, counts, batch[0], batch[-2], batch[-1]


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
        batch_contexts: contexts per forward pass, counted from the first of `contexts`.
        sites: names of sites.
        dtype: the storage type.
        progress: called after each batch with the index of the next context.
        into: tensors to fill instead of new ones, at least as long as the result.

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
            found[site][rows].copy_(x.flatten(0, 1), non_blocking=x.is_cuda)
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
    """Allocate captured rows, per site [n_tokens, width]; pinned if a GPU fills them."""
    keys: dict[str, Any] = {"dtype": dtype, "pin_memory": subject.device.type == "cuda"}
    return {site: torch.empty(n_tokens, subject.width(site), **keys) for site in sites}
