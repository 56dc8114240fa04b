"""One forward pass over a split feeds the stores of all sites."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nullsae.activations.store import SiteReader, SiteWriter, is_complete
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.errors import UserError
from nullsae.files import content_key, read_json, rebuild_command, write_json
from nullsae.params import CacheActivationsParams
from nullsae.randomness import torch_generator
from nullsae.subjects.loading import DTYPES, check_sites_add_up, load_subject, pick_device
from nullsae.validation import check_sites

# What a file system needs beside the tensors: headers, manifests, blocks half used.
DISK_OVERHEAD = 1.02
POSITION_BYTES = 8


def cache_activations(
    params: CacheActivationsParams,
    *,
    split: str,
    model: Path,
    tokens: Path,
    output: Path,
    report: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Capture all sites of a split that are not there yet.

    A site whose manifest has this provenance and whose shards are whole is left alone, so adding
    a site, or a run after a kill, recomputes only what is missing.

    Args:
        params: the rule's slice of the config.
        split: `sae_train` (tokens permuted within shards) or `eval` (in order).
        model: `recipe.json` of the variant.
        tokens: manifest of the corpus' split.
        output: the split's folder; its `manifest.json` is written last.
        report: called with (tokens done, tokens in all).

    Returns:
        The sites that were captured now.

    Raises:
        UserError: not enough disk, a site beyond the last block, or activations not finite.
    """
    torch.set_num_threads(params.compute.threads)
    folders = {site: output / f"site={site}" for site in params.sites}
    if not params.key:
        # By hand: what is on disk counts only if it came from just these inputs.
        sources = [read_json(file, rebuild=rebuild_command(file)) for file in (model, tokens)]
        key = content_key([params.model_dump(mode="json", exclude={"sites"}), sources])
        params = params.model_copy(update={"key": key})
    missing = [s for s, folder in folders.items() if not is_complete(folder, key=params.key)]
    if missing:
        _capture(params, missing, split, model, tokens, output, report)
    write_split_manifest(output, params.sites, split=split, key=params.key)
    return missing


def _capture(
    params: CacheActivationsParams,
    sites: list[str],
    split: str,
    model: Path,
    tokens: Path,
    output: Path,
    report: Callable[[int, int], None] | None,
) -> None:
    corpus = load_tokens(tokens)
    subject = load_subject(model, pick_device(params.compute.device))
    check_sites(tuple(sites), len(subject.blocks), where="--params: sites")
    check_sites_add_up(subject, sites, where="--params: sites")
    context_tokens = corpus.input_ids.shape[1]
    n_contexts = count_contexts(corpus, params.max_tokens)
    widths = {site: subject.width(site) for site in sites}
    dtype = DTYPES[params.dtype]
    n_tokens = n_contexts * context_tokens
    row_bytes = sum(width * dtype.itemsize + POSITION_BYTES for width in widths.values())
    check_disk(output, n_tokens * row_bytes)

    ids = torch.from_numpy(corpus.input_ids)
    writers = {
        site: SiteWriter(output / f"site={site}", dtype=params.dtype, d_model=width)
        for site, width in widths.items()
    }
    chunk_contexts = max(1, params.shard_tokens // context_tokens)
    for chunk, start in enumerate(range(0, n_contexts, chunk_contexts)):
        stop = min(start + chunk_contexts, n_contexts)
        parts: dict[str, list[Tensor]] = {site: [] for site in sites}
        for first in range(start, stop, params.batch_contexts):
            contexts = range(first, min(first + params.batch_contexts, stop))
            found = subject.activations(
                ids[contexts.start : contexts.stop], split=split, contexts=contexts, sites=sites
            )
            for site, values in found.items():
                parts[site].append(values.to("cpu", dtype).flatten(0, 1))
            if report is not None:
                report(contexts.stop * context_tokens, n_tokens)
        position = torch.arange(start * context_tokens, stop * context_tokens)
        order = shard_order(params.seed, split, chunk, len(position))
        for site, writer in writers.items():
            writer.write(torch.cat(parts.pop(site))[order], position[order])
    for site, writer in writers.items():
        writer.finish(
            key=params.key,
            site=site,
            split=split,
            context_tokens=context_tokens,
            tokens_checksum=corpus.manifest["tokens_checksum"],
        )


def write_split_manifest(output: Path, sites: tuple[str, ...], *, split: str, key: str) -> None:
    """Write the split's `manifest.json` over the sites' own, once these are complete."""
    manifest = output / "manifest.json"
    write_json(
        manifest,
        {
            "key": key,
            "split": split,
            "sites": {
                site: {
                    "n_tokens": (reader := SiteReader.open(manifest, site)).n_tokens,
                    "shards": [shard["checksum"] for shard in reader.manifest["shards"]],
                }
                for site in sites
            },
        },
    )


def count_contexts(corpus: Tokens, max_tokens: int | None) -> int:
    """How many of the split's contexts are stored: all, or those that `max_tokens` holds.

    Raises:
        UserError: less than one context, or more than the split has.
    """
    n_contexts, context_tokens = map(int, corpus.input_ids.shape)
    if max_tokens is None:
        return n_contexts
    wanted = max_tokens // context_tokens
    if not 1 <= wanted <= n_contexts:
        raise UserError(
            f"config: activations.sae_train_tokens: {max_tokens} is not between one "
            f"context ({context_tokens} tokens) and the corpus' {corpus.input_ids.size}"
        )
    return wanted


def shard_order(seed: int, split: str, chunk: int, n_tokens: int) -> Tensor:
    """Which row of a chunk stands where in its shard, int64 [n_tokens]: `eval` keeps the order."""
    if split != "sae_train":
        return torch.arange(n_tokens)
    # The same order at every site and variant: SAEs differ by what they see, not when.
    generator = torch_generator(seed, "shard_permutation", split, chunk)
    return torch.randperm(n_tokens, generator=generator)


def check_disk(output: Path, n_bytes: int) -> None:
    """Stop before writing what the disk will not hold."""
    folder = output
    while not folder.exists():
        folder = folder.parent
    needed, free = int(n_bytes * DISK_OVERHEAD), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{output}: the activations need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} "
            f"GB free; free some, or lower activations.sae_train_tokens or the number of sites"
        )
