"""A model to which it matters how it is read, and an SAE that the package trained on it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import Tokens
from nullsae.metrics.feeding import Feeding, Sample
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.initialization import initialize
from nullsae.sae.trainer import Trainer
from nullsae.subjects.loading import Subject
from small_chain import CPU, D_MODEL, VOCAB, tiny_model, tokens_of

BOS, SITE, N_LATENTS, K = 0, "resid_post.1", 64, 4
STEPS, BATCH = 200, 256


def sink_model(name: str = "", **keys: Any) -> Any:
    """A GPT-2 in which all tokens look at BOS, where it is there, and whose residual stream has a
    large mean, which no LayerNorm sees. Another `name` is another model; `keys` are of its config.
    """
    model = tiny_model("gpt2", **keys)
    generator = torch_generator(0, "fed_model", name)
    with torch.no_grad():
        if name:
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        away = torch.zeros(D_MODEL)
        away[0], away[1] = 40.0, -40.0
        model.transformer.wte.weight[BOS] = away
        for block in model.transformer.h:
            block.ln_1.weight.fill_(1.0)
            block.ln_1.bias.zero_()
            seen = away / away.norm()
            key = torch.randn(D_MODEL, generator=generator)
            weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
            weight[:, D_MODEL : 2 * D_MODEL] += torch.outer(seen, key) * 2.0
            bias[:D_MODEL] += key * 2.0
            block.attn.c_proj.bias += 1.5
    return model


def centred(model: Any) -> Any:
    """The same model with weights that write a mean of 0, as TransformerLens processes them.

    What stands behind its last LayerNorm stays the same; its unembedding is no longer the model's.
    """
    found = copy.deepcopy(model)
    with torch.no_grad():
        for table in (found.transformer.wte, found.transformer.wpe):
            table.weight -= table.weight.mean(dim=1, keepdim=True)
        # Conv1D weights are [in, out].
        for block in found.transformer.h:
            for written in (block.attn.c_proj, block.mlp.c_proj):
                written.weight -= written.weight.mean(dim=1, keepdim=True)
                written.bias -= written.bias.mean()
    return found


def subject_of(model: Any) -> Subject:
    return Subject(model, {"vocab_size": model.config.vocab_size}, CPU)


def tokens(n_contexts: int, *, seed: int, prepend_bos: bool = True) -> Tokens:
    """Contexts in which BOS is never a token of the text."""
    ids, documents = tokens_of(n_contexts, seed=seed, vocab=VOCAB - 1)
    ids = ids + 1
    if prepend_bos:
        ids[:, 0] = BOS
    return Tokens(ids, documents, {"bos_token_ids": [BOS], "prepend_bos": prepend_bos})


def activations(subject: Subject, text: Tokens | None = None) -> Tensor:
    """What SAEs are trained on, [tokens, d_model]: by default over 400 contexts."""
    text = tokens(400, seed=1) if text is None else text
    sample = Sample(subject, text, n_tokens=text.input_ids.size)
    return sample.activations(Feeding(SITE, prepend_bos=True))


def trained_on(x: Tensor) -> Autoencoder:
    """A TopK SAE by the package's own trainer, which works at a mean norm of sqrt(d_model)."""
    factor = scale_of_training(x)
    generator = torch_generator(0, "fed_sae")
    recipe = Sae.of(k=K, n_latents=N_LATENTS, lr=5e-3, batch_tokens=BATCH)
    start = initialize(x * factor, n_latents=N_LATENTS, k=K, generator=generator)
    trainer = Trainer(recipe, STEPS, start, k=K)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        trainer.train_step(x[rows] * factor)
    return trainer.model.autoencoder().scaled(1 / factor)


def scale_of_training(x: Tensor) -> float:
    """What brings activations to the mean norm that SAEs are trained at."""
    return D_MODEL**0.5 / float(x.norm(dim=1).mean())
