"""What every producer of a split's activations shares: provenance, shards and their order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from nullsae.activations.exclusion import LeftOut
from nullsae.activations.shards import Again, drop_records
from nullsae.activations.store import SiteReader, SiteWriter, is_complete
from nullsae.core.errors import UserError
from nullsae.core.files import content_key, read_json, rebuild_command, write_json
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.corpus.token_text import read_tokenizer, token_text
from nullsae.jobs.activations import CacheActivationsParams, SampleGaussianParams

logger = logging.getLogger(__name__)

# How many token ids a warning names.
NAMED_IDS = 5

P = TypeVar("P", CacheActivationsParams, SampleGaussianParams)


class SplitJob(Generic[P]):
    """The activations of a split that a job makes, and the sites that are still missing."""

    def __init__(self, params: P, split: str, source: Path, tokens: Path, output: Path) -> None:
        """Find out what exists already.

        Args:
            params: the job's. Without a key, as when run by hand, the key is made from all inputs:
                files on disk then count only if they came from the same inputs.
            split: `sae_train` or `eval`.
            source: JSON file that describes what makes the activations.
            tokens: manifest of the corpus' split.
            output: the split's folder.

        Raises:
            UserError: `source` or `tokens` is missing or damaged.
        """
        if not params.key:
            read = [read_json(file, rebuild=rebuild_command(file)) for file in (source, tokens)]
            update = {
                name: content_key([params.model_dump(mode="json", exclude=but), split, read])
                for name, but in (("key", {"sites"}), ("shards_key", {"sites", "exclude"}))
            }
            params = params.model_copy(update=update)
        elif not params.shards_key:
            params = params.model_copy(update={"shards_key": params.key})
        self.params: P = params
        self.split, self.source, self.tokens, self.output = split, source, tokens, output
        self.missing = [s for s in params.sites if not is_complete(self.folder(s), key=params.key)]

    @staticmethod
    def lock(output: Path, manifest: str = "manifest.json") -> Path:
        """Return the lock file of the process that makes a manifest of the split's folder."""
        return output / f".{manifest}.lock"

    def folder(self, site: str) -> Path:
        """Return the folder of a site's shards."""
        return self.output / f"site={site}"

    @cached_property
    def corpus(self) -> Tokens:
        """The split's tokens."""
        return load_tokens(self.tokens)

    @cached_property
    def shards(self) -> list[range]:
        """The contexts of each shard."""
        return shard_contexts(self.corpus, self.params.max_tokens, self.params.shard_tokens)

    def rows(self, index: int) -> tuple[Tensor, Tensor]:
        """Return positions of a shard's rows in the split, and `shard_order`: int64 [n] each."""
        contexts, length = self.shards[index], self.corpus.input_ids.shape[1]
        position = torch.arange(contexts.start * length, contexts.stop * length)
        return position, shard_order(self.params.seed, self.split, index, len(position))

    def again(self, rows: Callable[[int], Tensor]) -> Again | None:
        """Return how to write a site computed by `rows`; None if its activations are stored."""
        if self.params.keep:
            return None
        return Again(rows, self.params.exclude, self.corpus.input_ids.shape[1])

    def made_from(self, **more: Any) -> dict[str, Any]:
        """Describe how to compute these activations again, for a manifest without activations.

        Paths are relative to the split's folder, so that results may be moved as a unit.
        """
        files = {"source": self.source, "tokens": self.tokens}
        settings = self.params.model_dump(include={"seed", "max_tokens", "shard_tokens"})
        paths = {name: os.path.relpath(file, self.output) for name, file in files.items()}
        return {**paths, **settings, **more}

    def finish_site(self, writer: SiteWriter, site: str, **more: Any) -> None:
        """Write a site's manifest, with its provenance and further facts from its maker.

        A warning names the excluded tokens and their share of the variance.
        """
        left_out = writer.finish(
            key=self.params.key,
            site=site,
            split=self.split,
            context_tokens=self.corpus.input_ids.shape[1],
            exclude=self.params.exclude,
            tokens_checksum=self.corpus.manifest["tokens_checksum"],
            **more,
        )
        if left_out.n_excluded:
            logger.warning("warning: %s: %s", self.folder(site), self._told(left_out))

    def _told(self, left_out: LeftOut) -> str:
        """Describe which tokens were excluded."""
        position = torch.cat(left_out.positions).numpy()
        first = int((position % self.corpus.input_ids.shape[1] == 0).sum())
        ids, counts = np.unique(self.corpus.input_ids.reshape(-1)[position], return_counts=True)
        often = np.argsort(-counts, kind="stable")[:NAMED_IDS]
        tokenizer = self.tokens.parent.with_name("tokenizer") / "tokenizer.json"
        text = read_tokenizer(tokenizer) if tokenizer.is_file() else None
        names = [
            f"{'id' if text is None else repr(token_text(text, token))} {token} ({count})"
            for token, count in zip(ids[often].tolist(), counts[often].tolist(), strict=True)
        ]
        return (
            f"activations.exclude leaves out {left_out.n_excluded:,} of {left_out.n:,} tokens, "
            f"with {left_out.variance_share:.1%} of the variance; {first:,} are the first "
            f"of their context; most often: {', '.join(names)}"
        )

    def finish(self) -> None:
        """Write the split's `manifest.json` from those of its sites, once these are complete."""
        manifest, sites = self.output / "manifest.json", {}
        for site in self.params.sites:
            # Records remain if a run was killed between writing the manifest and deleting them.
            drop_records(self.folder(site))
            reader = SiteReader.open(manifest, site)
            checksums = [shard["checksum"] for shard in reader.manifest["shards"]]
            excluded = {"excluded": reader.manifest["excluded"]}
            sites[site] = {"n_tokens": reader.n_tokens, **excluded, "shards": checksums}
        write_json(manifest, {"key": self.params.key, "split": self.split, "sites": sites})


def shard_contexts(corpus: Tokens, max_tokens: int | None, shard_tokens: int) -> list[range]:
    """Return the contexts of each shard, as consecutive indices; only the last may be shorter.

    `max_tokens` (all of the split if None) and `shard_tokens` (at least one context) are rounded
    down to whole contexts.

    Raises:
        UserError: `max_tokens` is less than one context, or more than the split has.
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
    """Return the order of captured rows in a shard, int64 [n_tokens]; `eval` keeps it."""
    if split != "sae_train":
        return torch.arange(n_tokens)
    # The same at every site and variant: SAEs differ in what they see, not in when they see it.
    generator = torch_generator(seed, "shard_permutation", split, index)
    return torch.randperm(n_tokens, generator=generator)
