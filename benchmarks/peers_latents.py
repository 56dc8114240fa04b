"""delphi's half of latents.py, run by `.venv-peers`: python peers_latents.py FOLDER THREADS.

Runs delphi's `LatentCache` over existing activations (the model is a lookup that costs nothing),
written in its five files, then its `LatentDataset` over the first latents with enough windows.
Prints one line of JSON with CPU seconds. Imports nothing of nullsae.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from delphi.sparse_coders.load_sparsify import sae_dense_latents
from safetensors.torch import load_file
from sparsify import SparseCoder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

HOOK, BATCH_CONTEXTS, N_SPLITS, N_LATENTS, MIN_WINDOWS = "layer", 16, 5, 200, 200


class Lookup(nn.Module):
    """A model whose only layer returns the next activations."""

    device = torch.device("cpu")

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.activations, self.at = activations, 0

    def forward(self, tokens: Tensor) -> None:
        """Pass the activations of the next tokens to the hooks of the layer."""
        part = self.activations[self.at : self.at + tokens.numel()]
        self.at += tokens.numel()
        self.layer(part.float().view(*tokens.shape, -1))


def main() -> None:
    """Cache, then build."""
    logging.disable(logging.WARNING)
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    tokens = load_file(folder / "corpus/tokens.safetensors")["input_ids"].long()
    shards = sorted((folder / "activations").glob("site=*/*.safetensors"))
    activations = torch.cat([load_file(shard)["activations"] for shard in shards])
    sae = SparseCoder.load_from_disk(folder / "sparsify")
    row: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "latents"
        out.mkdir()
        cache = LatentCache(
            Lookup(activations),
            {HOOK: partial(sae_dense_latents, sae=sae)},
            batch_size=BATCH_CONTEXTS,
            log_path=Path(scratch),
        )
        start = time.process_time()
        cache.run(tokens.numel(), tokens)
        cache.save_splits(N_SPLITS, out)
        row["sort_s"] = time.process_time() - start
        cache.save_config(out, CacheConfig(cache_ctx_len=tokens.shape[1]), "none")
        where = cache.cache.latent_locations[HOOK]
        n_windows = tokens.numel() // 32
        window = where[:, 0] * (tokens.shape[1] // 32) + where[:, 1] // 32
        pairs = torch.unique(where[:, 2] * n_windows + window)
        per_latent = torch.bincount(pairs // n_windows)
        fit = (per_latent >= MIN_WINDOWS) & (per_latent <= n_windows - 50)
        latents = fit.nonzero().flatten()[:N_LATENTS]
        words = Tokenizer(WordLevel({str(i): i for i in range(int(tokens.max()) + 1)}))
        start = time.process_time()
        built = LatentDataset(
            raw_dir=str(out),
            sampler_cfg=SamplerConfig(),
            constructor_cfg=ConstructorConfig(),
            tokenizer=PreTrainedTokenizerFast(tokenizer_object=words),
            modules=[HOOK],
            latents={HOOK: latents},
        )
        row["n_latents"] = sum(bool(record.train and record.test) for record in built)
        row["draw_s"] = time.process_time() - start
    print(json.dumps(row))


if __name__ == "__main__":
    main()
