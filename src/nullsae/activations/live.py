"""Blocks of activations that are computed on demand and stored nowhere.

Block i equals shard i of a cache: the same contexts, run in the same batches, rounded to the same
type and permuted alike. So a stream is, bit for bit, what is read from a cache with the same
`shard_tokens`, and 100 million tokens need no disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nullsae.activations.exclusion import Kept, row_norms
from nullsae.activations.layout import shard_contexts, shard_order
from nullsae.activations.passes import ModelRows, SampledRows, Source, open_site
from nullsae.activations.store import SiteReader
from nullsae.config.variants import fitted_to
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.corpus.store import load_tokens
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.saes import TrainSaeParams
from nullsae.subjects.loading import DTYPES

SPLIT = "sae_train"


@dataclass(frozen=True)
class LiveBlocks:
    """`Blocks` from forward passes, or from a Gaussian.

    Memory: one block in the storage type, n * (sum of the sites' widths) * the type's bytes, with
    n = `shard_tokens` rounded down to whole contexts (at least one); while it is permuted, the
    largest site a second time.
    """

    seed: int
    keys: ModelKeys
    context_tokens: int
    shards: list[range]
    """Contexts of each block."""
    batch_contexts: int
    """Contexts in a forward pass."""
    source: Source
    rules: Mapping[str, Kept]
    """Which tokens count, by site."""

    @property
    def sizes(self) -> list[int]:
        return [len(contexts) * self.context_tokens for contexts in self.shards]

    @property
    def computed(self) -> bool:
        return True

    def block(self, index: int, sites: Collection[str]) -> dict[str, Tensor]:
        """Compute one block, all sites in one pass: each [n, width], in the storage type.

        Raises:
            UserError: NaN or infinite activations; names subject, variant, site, block and row.
        """
        contexts = self.shards[index]
        found = self.source(contexts=contexts, sites=sorted(sites))
        order = shard_order(self.seed, SPLIT, index, len(contexts) * self.context_tokens)
        for site, captured in found.items():
            x = found[site] = captured[order.to(captured.device)]
            # One pass without a copy; rows are checked one by one only if it finds something.
            finite = bool(torch.isfinite(x.sum(dtype=torch.float32)))
            if not finite and (row := bad_row(x)) is not None:
                position = contexts.start * self.context_tokens + int(order[row])
                raise UserError(
                    f"{self.name(index, site)}: row {row} (token {position}) is NaN or infinite; "
                    f"a subject in float16 or a larger activations.dtype may be the cause"
                )
            rule = self.rules[site]
            kept = rule.mask(row_norms(x).cpu(), contexts.start * self.context_tokens + order)
            found[site] = rule.fill(x, kept, self.seed, index, self.name(index, site))
        return found

    def name(self, index: int, site: str) -> str:
        keys = self.keys
        return (
            f"live activations of subject {keys.subject}, variant {keys.variant}, draw "
            f"{keys.draw}, site {site}, block {index}"
        )

    def work(self, indices: Collection[int]) -> str:
        if fitted_to(self.keys.variant, self.keys.draw):
            return f"{len(indices)} blocks sampled"
        passes = sum(-(-len(self.shards[i]) // self.batch_contexts) for i in indices)
        return f"{len(indices)} blocks computed in {passes} forward passes"


def bad_row(x: Tensor) -> int | None:
    """Return the first row of x [n, d] with a NaN or infinite entry, if any."""
    bad = ~torch.isfinite(x).all(dim=1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def live_blocks(
    params: TrainSaeParams,
    *,
    sites: Mapping[str, SiteReader],
    tokens: Path | None,
    model: Path | None,
    fitted: Path | None,
) -> LiveBlocks:
    """Make the stream that `params.stream` describes.

    Args:
        params: of a job in stream mode.
        sites: the variant's cached part, made from the same tokens.
        tokens: manifest of the corpus' `sae_train` split.
        model: `recipe.json` of the variant; `gaussian` and floors need none.
        fitted: manifest of the cached `sae_train` activations that `gaussian` or a floor is
            fitted to.

    Raises:
        UserError: a file is missing, damaged, or from another corpus or config.
    """
    stream, keys = params.stream, params.keys
    assert stream is not None
    if tokens is None:
        raise UserError(
            "activations.mode stream needs the tokens of sae_train: give --train-tokens"
        )
    corpus = load_tokens(tokens)
    for site, reader in sites.items():
        if reader.manifest["tokens_checksum"] != corpus.manifest["tokens_checksum"]:
            raise UserError(
                f"{tokens}: not the tokens from which site {site} of the cached activations was "
                f"made ({reader.folder})"
            )
    context_tokens = int(corpus.input_ids.shape[1])
    device = device_of(params.compute.device)
    source: Source
    if fitted_keys := fitted_to(keys.variant, keys.draw):
        if fitted is None:
            variant, draw = fitted_keys
            raise UserError(
                f"variant {keys.variant} in stream mode needs the activations of variant "
                f"{variant}, draw {draw}: give --fitted"
            )
        # All are opened before any is read.
        key = stream.fitted_activations_key
        readers = {site: open_site(fitted, site, key=key, device=device) for site in sites}
        dtype = DTYPES[stream.dtype]
        source = SampledRows(
            readers.__getitem__, device, keys, params.seed, SPLIT, context_tokens, dtype
        )
    else:
        if model is None:
            raise UserError("activations.mode stream needs the variant's weights: give --model")
        ids, n_contexts = torch.from_numpy(corpus.input_ids), stream.batch_contexts
        source = ModelRows(model, device, ids, SPLIT, n_contexts, DTYPES[stream.dtype])
    shards = shard_contexts(corpus, stream.max_tokens, stream.shard_tokens)
    # From the cached part, whose median stands for that of the stream.
    rules = {site: reader.rule for site, reader in sites.items()}
    batch_contexts = stream.batch_contexts
    return LiveBlocks(params.seed, keys, context_tokens, shards, batch_contexts, source, rules)
