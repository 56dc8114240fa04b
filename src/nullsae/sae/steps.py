"""Gradient steps of one SAE: schedule, order of the data, the step itself, exact checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nullsae.activations.store import SiteReader
from nullsae.config import Sae
from nullsae.files import atomic_path
from nullsae.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.dictionaries import FROZEN, keep_close
from nullsae.sae.topk import gradients

EVALUATION_BATCH_TOKENS = 4096


def learning_rate(sae: Sae, n_latents: int) -> float:
    """The recipe's peak rate: as given, or 2e-4 / sqrt(n_latents / 2^14) (Gao et al. 2024)."""
    return sae.lr if sae.lr is not None else 2e-4 / math.sqrt(n_latents / 2**14)


def schedule(step: int, n_steps: int, sae: Sae) -> float:
    """Factor on the peak rate in optimizer step `step` (0 ... n_steps - 1).

    Rises linearly over the first `warmup_share` of the steps, falls linearly to 0 over the last
    `decay_share`; never 0 itself.
    """
    warmup, decay = sae.warmup_share * n_steps, sae.decay_share * n_steps
    rise = (step + 1) / warmup if warmup >= 1 else 1.0
    fall = (n_steps - step) / decay if decay >= 1 else 1.0
    return min(1.0, rise, fall)


def training_batches(
    reader: SiteReader, sae: Sae, seed: int, key: tuple[str | int, ...], *, start_step: int
) -> Iterator[Tensor]:
    """Batches of exactly `batch_tokens` rows from `start_step` on.

    Shards come in an order drawn anew for each epoch. In the first epoch tokens lie in the order
    in which they were permuted at capture; later epochs permute each shard again. A rest of less
    than a batch is left out at the end of an epoch.
    """
    per_epoch = reader.n_tokens // sae.batch_tokens
    sizes = [int(shard["n_tokens"]) for shard in reader.manifest["shards"]]
    for epoch in range(start_step // per_epoch, sae.epochs):
        first = start_step % per_epoch if epoch == start_step // per_epoch else 0
        generator = torch_generator(seed, "shard_order", *key, epoch)
        order = torch.randperm(len(sizes), generator=generator).tolist()
        skip, left = first * sae.batch_tokens, per_epoch - first
        held = torch.empty(0, reader.d_model)
        for index in order:
            if left == 0:
                break
            if skip >= sizes[index]:
                skip -= sizes[index]
                continue
            x = reader.shard(index)[0]
            if epoch:
                again = torch_generator(seed, "epoch_permutation", *key, epoch, index)
                x = x[torch.randperm(len(x), generator=again)]
            held, skip = torch.cat([held, x[skip:]]), 0
            n = min(len(held) // sae.batch_tokens, left)
            if n == 0:
                continue  # torch.split makes one empty batch of no rows
            yield from torch.split(held[: n * sae.batch_tokens], sae.batch_tokens)
            held, left = held[n * sae.batch_tokens :], left - n


@dataclass
class Trainer:
    """State of one training run, in the scaled space where activations have mean norm sqrt(d).

    It is made with the initial weights, to which `soft_frozen_decoder` is held, also where `load`
    then puts a checkpoint's in their place.
    """

    recipe: Sae
    n_steps: int
    sae: Autoencoder
    step: int
    unfired_tokens: Tensor
    """int64 [n_latents]: tokens since a latent last fired."""
    history: list[dict[str, Any]]

    def __post_init__(self) -> None:
        recipe = self.recipe
        frozen = FROZEN.get(recipe.dictionary, ())
        self.trained = {n: t for n, t in self.sae.parameters().items() if n not in frozen}
        self.optimizer = torch.optim.Adam(list(self.trained.values()), lr=1.0, fused=True)
        self.peak_lr = learning_rate(recipe, self.sae.n_latents)
        self.auxk_k = recipe.auxk_k or max(1, self.sae.d_model // 2)
        # What is dead under a frozen encoder stays dead, whatever its decoder row learns.
        revivable = "encoder.weight" in self.trained
        self.auxk_coefficient = recipe.auxk_coefficient if revivable else 0.0
        soft = recipe.dictionary == "soft_frozen_decoder"
        self.start = self.sae.w_dec.clone() if soft else None

    @property
    def dead(self) -> Tensor:
        """Which latents count as dead, bool [n_latents]."""
        return self.unfired_tokens >= self.recipe.dead_after_tokens

    def train_step(self, x: Tensor) -> tuple[float, float]:
        """One optimizer step on x [batch_tokens, d_model]; returns (FVU, AuxK) of the batch."""
        sae, recipe = self.sae, self.recipe
        exact, losses = gradients(
            sae,
            x,
            dead=self.dead,
            auxk_k=self.auxk_k,
            auxk_coefficient=self.auxk_coefficient,
        )
        gradient = {name: exact[name] for name in self.trained}
        if "W_dec" in gradient:
            decoder = gradient["W_dec"]
            # Rows have unit norm: what points along a row only fights the renormalization.
            decoder -= (decoder * sae.w_dec).sum(dim=1, keepdim=True) * sae.w_dec
        norm = torch.stack([g.norm() for g in gradient.values()]).norm()
        clip = (recipe.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for name, parameter in self.trained.items():
            parameter.grad = gradient[name] * clip
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.optimizer.step()
        if "W_dec" in gradient:
            sae.w_dec /= sae.w_dec.norm(dim=1, keepdim=True)
        if self.start is not None:
            sae.w_dec.copy_(keep_close(sae.w_dec, self.start, recipe.min_decoder_cosine))
        self.unfired_tokens += len(x)
        self.unfired_tokens[losses.fired] = 0
        self.step += 1
        return losses.fvu, losses.auxk

    def lr(self) -> float:
        """The rate of the coming step."""
        return self.peak_lr * schedule(self.step, self.n_steps, self.recipe)

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on, atomically."""
        tensors = {"unfired_tokens": self.unfired_tokens, **self.sae.parameters()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        metadata = {"step": str(self.step), "history": json.dumps(self.history)}
        with atomic_path(path) as temporary:
            save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, temporary, metadata)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint written by `save`."""
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata()
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        self.step = int(metadata["step"])
        self.history = json.loads(metadata["history"])
        self.unfired_tokens = tensors["unfired_tokens"].to(self.unfired_tokens.device)
        for name, parameter in self.sae.parameters().items():
            parameter.copy_(tensors[name])
        for name, parameter in self.trained.items():
            self.optimizer.state[parameter] = {
                key: tensors[f"adam.{key}.{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }


def evaluate(sae: Autoencoder, x: Tensor, ids: Tensor | None = None) -> dict[str, float]:
    """Explained variance, mean cosine and share of latents that fired on x [tokens, d_model].

    `ids` are the token ids int64 [tokens], which only `token_lookup` needs.
    """
    error, cosine = 0.0, 0.0
    fired = torch.zeros(sae.n_latents, dtype=torch.bool, device=x.device)
    for start in range(0, len(x), EVALUATION_BATCH_TOKENS):
        part = slice(start, start + EVALUATION_BATCH_TOKENS)
        batch = x[part]
        values, indices = sae.encode(batch, None if ids is None else ids[part])
        output = sae.decode(values, indices)
        error += float((batch.double() - output.double()).square().sum())
        cosine += float(torch.cosine_similarity(batch, output, dim=1).double().sum())
        fired[indices[values > 0]] = True
    exact = x.double()
    variance = float((exact - exact.mean(dim=0)).square().sum())
    return {
        "heldout_explained_variance": 1.0 - error / variance,
        "heldout_cosine": cosine / len(x),
        "heldout_alive_share": float(fired.double().mean()),
    }
