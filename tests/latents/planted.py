"""A language, models and dictionaries made by hand, so that everything about them is known.

In the text, token v is followed by its `successor` in three of four cases, else by any token. The
blocks of the models add nothing, so the residual stream is the embedding everywhere. Each token
has its own pair of dimensions, with entries +-1, so directions have mean 0 and share nothing, and
different tokens have bit-identical effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from test_latents_statistics import firings_of
from torch import Tensor

from nullsae.activations.capture import cache_activations
from nullsae.config.latents import Latents
from nullsae.config.metrics import Metric
from nullsae.config.subjects import PretrainedSource
from nullsae.core.randomness import numpy_generator
from nullsae.latents.places import Places, firing_places, silent_places
from nullsae.latents.split import Split
from nullsae.latents.windows import Grid
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.families import find_blocks
from nullsae.subjects.publish import randomize_model
from run_stages import collected
from small_chain import capture_params, cell, model_params, write_corpus, write_sae

N_TOKENS, N_ROWS = 24, 28
"""The head has more rows than there are tokens, as in checkpoints."""
WIDTH, CONTEXT, N_CONTEXTS = 2 * N_TOKENS, 16, 90
EMBEDDED = READ = 0.4
"""Sizes of the entries of embeddings and of an untied head, for which the models are about as sure
as the text allows."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Family:
    """A family of models, and what it does between the last block and the logits."""

    config: str
    norm: str
    """Name of the last norm."""
    keys: Mapping[str, Any]
    centres: bool
    tied: bool
    one_is_zero: bool = False
    """Whether the norm's gain is 1 plus its weight."""
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    cap: float | None = None


SHAPE = {
    "vocab_size": N_ROWS,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    **{"bos_token_id": 27, "eos_token_id": 27, "pad_token_id": 26},
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32}
FAMILIES = {
    "gpt_neox": Family("GPTNeoXConfig", "gpt_neox.final_layer_norm", {}, centres=True, tied=False),
    "gpt2": Family("GPT2Config", "transformer.ln_f", GPT2, centres=True, tied=True),
    "llama": Family("LlamaConfig", "model.norm", GROUPED, centres=False, tied=False),
    "llama_tied": Family("LlamaConfig", "model.norm", GROUPED, centres=False, tied=True),
    "cohere": Family(
        *("CohereConfig", "model.norm", {**GROUPED, "logit_scale": 0.5}),
        **{"centres": True, "tied": True, "logit_scale": 0.5},
    ),
    "granite": Family(
        *("GraniteConfig", "model.norm", {**GROUPED, "logits_scaling": 2.0}),
        **{"centres": False, "tied": False, "logit_scale": 0.5},
    ),
    "gemma2": Family(
        *("Gemma2Config", "model.norm", {**GROUPED, "final_logit_softcapping": 3.0}),
        **{"centres": False, "tied": True, "one_is_zero": True, "cap": 3.0},
        embedding_scale=WIDTH**0.5,
    ),
}


def successor(tied: bool) -> Array:
    """Return what follows each token: the next one in a circle; a tied head can only repeat."""
    return (np.arange(N_TOKENS) + (not tied)) % N_TOKENS


def pairs_of(tokens: Array) -> Array:
    """Return a direction for each token, float64 [n, WIDTH]."""
    rows = np.zeros((len(tokens), WIDTH))
    rows[np.arange(len(tokens)), 2 * tokens] = 1
    rows[np.arange(len(tokens)), 2 * tokens + 1] = -1
    return rows


def text_of(follows: Array, n_contexts: int = N_CONTEXTS) -> tuple[Array, Array]:
    """Return token ids and documents, int32 [n_contexts, CONTEXT]; each context is a document."""
    rng = np.random.default_rng(5)
    ids = np.empty((n_contexts, CONTEXT), dtype=np.int32)
    ids[:, 0] = rng.integers(0, len(follows), n_contexts)
    for at in range(1, CONTEXT):
        other = rng.integers(0, len(follows), n_contexts)
        ids[:, at] = np.where(rng.random(n_contexts) < 0.75, follows[ids[:, at - 1]], other)
    documents = np.repeat(np.arange(n_contexts, dtype=np.int32)[:, None], CONTEXT, axis=1)
    return ids, documents


def gains_of(centres: bool) -> tuple[Array, Array]:
    """Return gain and bias of the last norm, float64 [WIDTH]."""
    rng = np.random.default_rng(8)
    gain = np.float32(rng.uniform(0.7, 1.4, WIDTH)).astype(np.float64)
    return gain, np.float32(rng.normal(0, 0.1, WIDTH)) * float(centres)


def planted_model(family: Family) -> Any:
    """Make a model whose last block passes on the embeddings."""
    plain = SHAPE if "hidden_size" not in family.keys and "n_embd" not in family.keys else {}
    plain = plain or {key: SHAPE[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, family.config)(
        **{**plain, "tie_word_embeddings": family.tied, **family.keys}
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    norm, (gain, bias) = model.get_submodule(family.norm), gains_of(family.centres)
    head = torch.zeros(N_ROWS, WIDTH)
    with torch.no_grad():
        # Positions, and everything that blocks do.
        for parameter in [*find_blocks(model).parameters(), *_positions(model)]:
            parameter.zero_()
        norm.weight.copy_(torch.from_numpy(gain - family.one_is_zero))
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.from_numpy(bias))
        head[:N_TOKENS] = torch.from_numpy(READ * pairs_of(np.arange(N_TOKENS)))
        if not family.tied:
            model.get_output_embeddings().weight.copy_(head)
        embedding = model.get_input_embeddings().weight
        embedding.zero_()
        embedding[:N_TOKENS] = torch.from_numpy(EMBEDDED * pairs_of(successor(family.tied)))
    return model.eval().requires_grad_(False)


def _positions(model: Any) -> list[Tensor]:
    table = getattr(getattr(model, "transformer", None), "wpe", None)
    return [] if table is None else [table.weight]


def stream(family: Family, tokens: Array) -> Array:
    """Return the residual stream at tokens (integers [n]): float64 [n, WIDTH]."""
    return EMBEDDED * family.embedding_scale * pairs_of(successor(family.tied)[tokens])


def log_p(family: Family, x: Array) -> Array:
    """Compute next-token log-probabilities of x, float64 [n, WIDTH], by hand: [n, N_ROWS]."""
    gain, bias = gains_of(family.centres)
    eps = 1e-6 if family.config in ("LlamaConfig", "GraniteConfig", "Gemma2Config") else 1e-5
    if family.centres:
        x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * gain
    if family.config in ("GPTNeoXConfig", "GPT2Config"):
        x = x + bias
    head = np.zeros((N_ROWS, WIDTH))
    head[:N_TOKENS] = (EMBEDDED if family.tied else READ) * pairs_of(np.arange(N_TOKENS))
    logits = x @ head.T * family.logit_scale
    if family.cap is not None:
        logits = family.cap * np.tanh(logits / family.cap)
    found: Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def known_directions(tied: bool) -> Autoencoder:
    """Return one latent per token that fires only there, with the successor's direction as row."""
    rows = torch.from_numpy(pairs_of(successor(tied))).float()
    zeros = torch.zeros(N_TOKENS), torch.zeros(WIDTH)
    return Autoencoder("topk", rows / 2, zeros[0], rows.clone(), zeros[1], k=1)


@dataclass(frozen=True)
class Cell:
    """The tables of one dictionary at one site."""

    rows: list[dict[str, Any]]
    coverage: dict[str, Any]

    def column(self, name: str) -> Array:
        """Return a column, float64 [n_latents], with NaN for null."""
        return np.array([row[name] for row in self.rows], dtype=np.float64)

    def metric(self, metric: Metric) -> Array:
        """Return a metric of each latent, float64 [n_latents]."""
        return np.asarray(metric.value({name: self.column(name) for name in metric.columns}))


class Study:
    """A model and its text on disk, whose dictionaries are examined."""

    def __init__(
        self, root: Path, model: Any, ids: Array, documents: Array, vocab: int = N_TOKENS
    ) -> None:
        self.root, self.ids = root, ids
        model.save_pretrained(root / "source")
        self.tokens = write_corpus(root / "eval", ids, documents, vocab=vocab)
        source = PretrainedSource(kind="pretrained", path=str(root / "source"))
        self.model = root / "trained/recipe.json"
        randomize_model(
            model_params(source), trained=None, eval_tokens=self.tokens, output=root / "trained"
        )

    def activations(self, site: str) -> Path:
        """Return the manifest of the `eval` activations at a site."""
        output = self.root / "activations" / site
        if not output.exists():
            cache_activations(
                capture_params(sites=(site,), shard_tokens=self.ids.size),
                split="eval",
                model=self.model,
                tokens=self.tokens,
                output=output,
            )
        return output / "manifest.json"

    def cell(self, site: str, coder: Autoencoder, name: str, **keys: Any) -> Cell:
        """Collect the latents of a dictionary; all that pass are sampled."""
        folder = self.root / site / name
        sae = write_sae(coder, folder / "sae", site=site)
        found = collected(
            folder,
            keys=cell(site),
            latents=Latents(**{**SETTINGS, **keys}),
            sae=sae,
            activations=self.activations(site),
            tokens=self.tokens,
            model=self.model,
        )
        return Cell(found["latents"], found["coverage"][0])


SETTINGS = {
    "n_sampled": 100,
    "min_firings": 20,
    "min_pool_windows": 4,
    "window_tokens": 4,
    "causal_places": 12,
    **{"explain_active_windows": 2, "explain_silent_windows": 2, "n_quantiles": 2},
    **{"score_active_windows": 2, "score_silent_windows": 2},
}


def generator_of(site: str, purpose: str) -> Callable[[int], np.random.Generator]:
    """Return the generators that a cell's latents draw from."""
    return partial(numpy_generator, 0, purpose, *cell(site).parts())


def another(site: str, purpose: str, n: int) -> Array:
    """Return whose row each of n latents gets as a placebo, as drawn."""
    turn = numpy_generator(0, purpose, *cell(site).parts()).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[turn] = np.roll(turn, 1)
    return other


def places_of(study: Study, site: str, codes: Array) -> tuple[Places, Places]:
    """Return the places where latents with these codes, [n_tokens, n_latents], are measured.

    They are firings and silent tokens, as drawn.
    """
    n_contexts, context = study.ids.shape
    document = np.arange(study.ids.size) // context
    split = Split(study.ids.reshape(-1), document, context, None, study.tokens)
    latents, n = np.arange(codes.shape[1]), SETTINGS["causal_places"]
    order = numpy_generator(0, "causal_contexts").permutation(n_contexts)
    follows = np.where(np.arange(study.ids.size) % context == context - 1, -1, 0)
    fired = firing_places(
        *(firings_of(np.float32(codes)), latents, follows, split, order, n),
        generator_of(site, "ablated_firings"),
    )
    grid = Grid.cut(document.reshape(-1, context), SETTINGS["window_tokens"])
    in_windows = codes.reshape(grid.n_windows, grid.window_tokens, -1).max(axis=1)
    silent = silent_places(
        *(firings_of(np.float32(in_windows)), latents, grid, lambda at: at < 0, order, n),
        generator_of(site, "silent_places"),
    )
    return fired, silent


def means_of(places: Places, values: Array, n_latents: int) -> Array:
    """Return means by latent, float64 [n_latents]."""
    sums: Array = np.bincount(places.of, values, n_latents)
    return sums / np.bincount(places.of, minlength=n_latents)
