"""What every maker of a split's activations shares: its provenance, its shards, their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nullsae.activations.shards import drop_records
from nullsae.activations.store import SiteReader, SiteWriter
from nullsae.core.errors import UserError
from nullsae.core.files import content_key, read_json, rebuild_command, write_json
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import Tokens
from nullsae.jobs.activations import CacheActivationsParams, SampleGaussianParams

P = TypeVar("P", CacheActivationsParams, SampleGaussianParams)


def with_key(params: P, split: str, sources: tuple[Path, Path]) -> P:
    """`params` with their provenance; without one, as by hand, it is made from all inputs.

    What is on disk then counts only if it came from just these inputs.

    Args:
        params: of a job that makes a split's activations.
        split: the split.
        sources: JSON files that the activations are made from.

    Raises:
        UserError: a source is missing or damaged.
    """
    if params.key:
        return params
    read = [read_json(file, rebuild=rebuild_command(file)) for file in sources]
    key = content_key([params.model_dump(mode="json", exclude={"sites"}), split, read])
    return params.model_copy(update={"key": key})


def shard_contexts(corpus: Tokens, max_tokens: int | None, shard_tokens: int) -> list[range]:
    """The contexts of each shard, as consecutive indices; all shards but the last are equal.

    Args:
        corpus: a split.
        max_tokens: tokens wanted, rounded down to whole contexts; all of the split by default.
        shard_tokens: tokens in a shard, rounded down to whole contexts, at least one.

    Raises:
        UserError: less than one context is wanted, or more than the split has.
    """
    n_contexts, context_tokens = map(int, corpus.input_ids.shape)
    if max_tokens is not None:
        wanted = max_tokens // context_tokens
        if not 1 <= wanted <= n_contexts:
            raise UserError(
                f"config: activations.sae_train_tokens: {max_tokens} is not between one "
                f"context ({context_tokens} tokens) and the corpus' {corpus.input_ids.size}"
            )
        n_contexts = wanted
    step = max(1, shard_tokens // context_tokens)
    return [range(i, min(i + step, n_contexts)) for i in range(0, n_contexts, step)]


def shard_order(seed: int, split: str, index: int, n_tokens: int) -> Tensor:
    """Indices of the captured rows in their order in a shard, int64 [n_tokens]; `eval` keeps it."""
    if split != "sae_train":
        return torch.arange(n_tokens)
    # The same order at every site and variant: SAEs differ by what they see, not when.
    generator = torch_generator(seed, "shard_permutation", split, index)
    return torch.randperm(n_tokens, generator=generator)


def shard_rows(
    seed: int, split: str, index: int, contexts: range, context_tokens: int
) -> tuple[Tensor, Tensor]:
    """Positions of a shard's captured rows in its split, and `shard_order`: int64 [n] each."""
    position = torch.arange(contexts.start * context_tokens, contexts.stop * context_tokens)
    return position, shard_order(seed, split, index, len(position))


def finish_site(
    writer: SiteWriter, key: str, site: str, split: str, corpus: Tokens, **more: Any
) -> None:
    """Write a site's manifest, with its provenance and what else its maker knows."""
    writer.finish(
        key=key,
        site=site,
        split=split,
        context_tokens=corpus.input_ids.shape[1],
        tokens_checksum=corpus.manifest["tokens_checksum"],
        **more,
    )


def write_split_manifest(output: Path, sites: tuple[str, ...], *, split: str, key: str) -> None:
    """Write the split's `manifest.json` over the sites' own, once these are complete."""
    manifest = output / "manifest.json"
    for site in sites:  # of a run that was killed between a site's manifest and their deletion
        drop_records(output / f"site={site}")
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
