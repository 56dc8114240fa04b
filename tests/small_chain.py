"""Small real inputs shared by the tests of the numerical core: corpora, models, shards, SAEs.

Nothing here is a stand-in: models are Hugging Face models, files are written by the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from nullsae.activations.store import SiteReader, SiteWriter
from nullsae.config.compute import Compute
from nullsae.config.subjects import PretrainedSource
from nullsae.core.files import checksum, write_json
from nullsae.core.randomness import numpy_generator, torch_generator
from nullsae.jobs.activations import CacheActivationsParams
from nullsae.jobs.keys import CellKeys, ModelKeys
from nullsae.jobs.saes import SaeCell, TrainSaeParams
from nullsae.jobs.subjects import RandomizeModelParams
from nullsae.subjects.loading import DTYPES

# Threads wait for each other on a busy machine, which costs such small tensors minutes.
torch.set_num_threads(1)

CPU = torch.device("cpu")
COMPUTE = Compute(threads=1, device="cpu")
VOCAB, CONTEXT, D_MODEL, N_LAYERS = 96, 16, 16, 3
SITES = ("resid_post.0", "resid_post.1", "resid_post.2")


def tokens_of(
    n_contexts: int, *, seed: int, vocab: int = VOCAB, context: int = CONTEXT
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Token ids with a skewed distribution, and documents of 5 to 60 tokens packed in a row."""
    rng = numpy_generator(seed, "test_tokens")
    n = n_contexts * context
    ids = np.minimum(rng.geometric(0.08, n) - 1, vocab - 1).astype(np.int32)
    lengths = rng.integers(5, 60, n)
    documents = np.repeat(np.arange(n), lengths)[:n].astype(np.int32)
    return ids.reshape(n_contexts, context), documents.reshape(n_contexts, context)


def write_corpus(
    folder: Path,
    input_ids: NDArray[np.int32],
    document_id: NDArray[np.int32],
    *,
    vocab: int = VOCAB,
) -> Path:
    """A corpus split on disk; returns its manifest."""
    folder.mkdir(parents=True)
    file = folder / "tokens.safetensors"
    save_file({"input_ids": input_ids, "document_id": document_id}, file)
    manifest = {
        "tokens_checksum": checksum(file),
        "vocab_size": vocab,
        # Of no corpus: the models of these tests are random, and stand for trained ones.
        "unigram_loss_nats": 40.0,
        "bigram_loss_nats": 35.0,
    }
    write_json(folder / "manifest.json", manifest)
    return folder / "manifest.json"


def tiny_model(kind: str, **keys: Any) -> Any:
    """A small causal language model whose every tensor varies; nothing global is drawn from."""
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPTNeoXConfig,
        LlamaConfig,
        PretrainedConfig,
    )

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config: PretrainedConfig
    if kind == "gpt2":
        plain = {
            "vocab_size": VOCAB,
            "n_layer": N_LAYERS,
            "n_embd": D_MODEL,
            "n_head": 2,
            "n_positions": 32,
        }
        config = GPT2Config(**{**plain, **ends, **keys})
    else:
        shape = {
            "vocab_size": VOCAB,
            "num_hidden_layers": N_LAYERS,
            "hidden_size": D_MODEL,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
        }
        family = {"gpt_neox": GPTNeoXConfig, "llama": LlamaConfig}[kind]
        config = family(**{**shape, **ends, **keys})
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=torch_generator(0, "test", kind, name))
            gain = "norm" in name or "ln_" in name
            parameter.copy_(drawn * 0.2 + (1.0 if gain and name.endswith("weight") else 0.0))
    return model.eval().requires_grad_(False)


def save_source(kind: str, folder: Path, **keys: Any) -> PretrainedSource:
    """A local model folder, as a user would name it in the config."""
    tiny_model(kind, **keys).save_pretrained(folder)
    return PretrainedSource(kind="pretrained", path=str(folder))


def model_params(
    source: PretrainedSource | None, variant: Any = "trained", **keys: Any
) -> RandomizeModelParams:
    plain: dict[str, Any] = {"seed": 0, "compute": COMPUTE}
    draw = keys.pop("draw", 0)
    return RandomizeModelParams(
        keys=ModelKeys(subject="tiny", variant=variant, draw=draw),
        source=source,
        **{**plain, **keys},
    )


def capture_params(**keys: Any) -> CacheActivationsParams:
    plain: dict[str, Any] = {
        "sites": SITES,
        "seed": 0,
        "dtype": "float32",
        "shard_tokens": 8 * CONTEXT,
        "batch_contexts": 8,
        "compute": COMPUTE,
        "key": "key",
    }
    return CacheActivationsParams(**{**plain, **keys})


def cell(site: str = "resid_post.1", seed: int = 0) -> CellKeys:
    return CellKeys(subject="tiny", variant="trained", draw=0, site=site, sae="topk", seed=seed)


def write_site(
    folder: Path,
    x: Tensor,
    shard_sizes: list[int],
    *,
    site: str = "resid_post.1",
    dtype: str = "float32",
    position: Tensor | None = None,
    key: str = "key",
) -> Path:
    """A captured split with one site that holds `x` [n, d]; returns the split's manifest."""
    position = torch.arange(len(x)) if position is None else position
    writer = SiteWriter(folder / f"site={site}", dtype=dtype)
    start = 0
    for index, size in enumerate(shard_sizes):
        part = slice(start, start + size)
        writer.write(index, x[part].to(DTYPES[dtype]), position[part])
        start += size
    writer.finish(key=key, site=site, split="eval", context_tokens=CONTEXT, tokens_checksum="")
    write_json(folder / "manifest.json", {"key": key})
    return folder / "manifest.json"


def all_rows(manifest: Path, site: str) -> tuple[Tensor, Tensor]:
    """Everything that a site stores, in stored order."""
    reader = SiteReader.open(manifest, site)
    parts = [reader.stored(index) for index in range(reader.n_shards)]
    return torch.cat([x for x, _ in parts]).float(), torch.cat([p for _, p in parts])


def flip_byte(path: Path, offset: int = -1) -> None:
    """What a bad disk does."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


@dataclass(frozen=True)
class Chain:
    """A tiny study up to its activations."""

    root: Path
    source: PretrainedSource
    train_tokens: Path
    eval_tokens: Path
    recipe: Path
    train_activations: Path
    eval_activations: Path

    @property
    def inputs(self) -> dict[str, Path]:
        """What an SAE is evaluated on."""
        return {
            **{"model": self.recipe, "train_tokens": self.train_tokens},
            **{"eval_tokens": self.eval_tokens, "train_activations": self.train_activations},
            **{"eval_activations": self.eval_activations},
        }


def build_chain(root: Path) -> Chain:
    """Corpus, the trained variant of a GPT-NeoX, and its activations in float32."""
    from nullsae.activations.capture import cache_activations
    from nullsae.subjects.publish import randomize_model

    train = write_corpus(root / "corpus/sae_train", *tokens_of(64, seed=1))
    heldout = write_corpus(root / "corpus/eval", *tokens_of(60, seed=2))
    source = save_source("gpt_neox", root / "source")
    randomize_model(
        model_params(source), trained=None, eval_tokens=heldout, output=root / "trained"
    )
    manifests = []
    for split, tokens in (("sae_train", train), ("eval", heldout)):
        output = root / "activations" / split
        cache_activations(
            capture_params(),
            split=split,
            model=root / "trained/recipe.json",
            tokens=tokens,
            output=output,
        )
        manifests.append(output / "manifest.json")
    return Chain(root, source, train, heldout, root / "trained/recipe.json", *manifests)


def train_params(sae: Any, **keys: Any) -> TrainSaeParams:
    """Of one SAE of the trained variant, named `topk`, at `resid_post.1`."""
    plain: dict[str, Any] = {
        "seed": 0,
        "keys": ModelKeys(subject="tiny", variant="trained", draw=0),
        "saes": {"topk": sae},
        "cells": (SaeCell(site="resid_post.1", sae="topk", seed=0),),
        "compute": COMPUTE,
    }
    return TrainSaeParams(**{**plain, **keys})


def lookup_sae(table: Tensor) -> Any:
    """The dictionary that sees ids alone: a row of `table` [vocabulary, d] for each."""
    from nullsae.sae.autoencoder import Autoencoder

    length, d = table.norm(dim=1), table.shape[1]
    rows = (table / length[:, None]).float()
    return Autoencoder("token_lookup", torch.empty(0, d), length.float(), rows, torch.zeros(d))


def codes_of(sae: Any, x: Tensor) -> Tensor:
    """[tokens, n_latents]."""
    values, indices = sae.encode(x)
    return torch.zeros(len(x), sae.n_latents).scatter_add(1, indices, values)


def write_sae(sae: Any, folder: Path, *, site: str = "resid_post.1", **described: Any) -> Path:
    """Write an SAE for a site as training does; returns its `cfg.json`."""
    from nullsae.sae.files import save_sae

    plain: dict[str, Any] = {
        **{"dictionary": "learned", "keys": cell(site), "seed": 0, "activations_key": "key"},
        **{"key": "key", "input_norm": 1.0, "training": {}, "n_steps": 1},
    }
    save_sae(sae, folder, **{**plain, **described})
    return folder / "cfg.json"


def save_tiny_sae(chain: Chain, folder: Path, *, n_latents: int = 48, k: int = 4) -> Path:
    """An untrained SAE for `resid_post.1` of the chain; returns its `cfg.json`."""
    from nullsae.sae.initialization import initialize

    x, _ = all_rows(chain.eval_activations, "resid_post.1")
    generator = torch_generator(0, "test_sae")
    sae = initialize(x, n_latents=n_latents, k=k, generator=generator)
    sae.b_enc += torch.randn(n_latents, generator=generator) * 0.3
    return write_sae(sae, folder)
