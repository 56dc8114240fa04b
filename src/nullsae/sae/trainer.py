"""Training of one SAE: deterministic order of data, checkpoints, exact resume."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nullsae import tables
from nullsae.activations.store import SiteReader
from nullsae.config import Sae
from nullsae.errors import UserError
from nullsae.files import atomic_path, content_key
from nullsae.params import TrainSaeParams
from nullsae.randomness import torch_generator
from nullsae.sae.files import save_sae
from nullsae.sae.topk import TopKSae, gradients, initialize
from nullsae.subjects.loading import pick_device

logger = logging.getLogger(__name__)

INIT_TOKENS = 32_768
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
    """State of one training run, in the scaled space where activations have mean norm sqrt(d)."""

    recipe: Sae
    n_steps: int
    sae: TopKSae
    step: int
    unfired_tokens: Tensor
    """int64 [n_latents]: tokens since a latent last fired."""
    history: list[dict[str, Any]]

    def __post_init__(self) -> None:
        parameters = list(self.sae.parameters().values())
        self.optimizer = torch.optim.Adam(parameters, lr=1.0, fused=True)
        self.peak_lr = learning_rate(self.recipe, self.sae.n_latents)
        self.auxk_k = self.recipe.auxk_k or max(1, self.sae.w_dec.shape[1] // 2)

    @property
    def dead(self) -> Tensor:
        """Which latents count as dead, bool [n_latents]."""
        return self.unfired_tokens >= self.recipe.dead_after_tokens

    def train_step(self, x: Tensor) -> tuple[float, float]:
        """One optimizer step on x [batch_tokens, d_model]; returns (FVU, AuxK) of the batch."""
        sae, recipe = self.sae, self.recipe
        gradient, losses = gradients(
            sae,
            x,
            dead=self.dead,
            auxk_k=self.auxk_k,
            auxk_coefficient=recipe.auxk_coefficient,
        )
        decoder = gradient["W_dec"]
        # Rows have unit norm: what points along a row only fights the renormalization.
        decoder -= (decoder * sae.w_dec).sum(dim=1, keepdim=True) * sae.w_dec
        norm = torch.stack([g.norm() for g in gradient.values()]).norm()
        clip = (recipe.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for name, parameter in sae.parameters().items():
            parameter.grad = gradient[name] * clip
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.optimizer.step()
        sae.w_dec /= sae.w_dec.norm(dim=1, keepdim=True)
        self.unfired_tokens += len(x)
        self.unfired_tokens[losses.fired] = 0
        self.step += 1
        return losses.fvu, losses.auxk

    def lr(self) -> float:
        """The rate of the coming step."""
        return self.peak_lr * schedule(self.step, self.n_steps, self.recipe)

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on, atomically."""
        tensors = {"unfired_tokens": self.unfired_tokens}
        for name, parameter in self.sae.parameters().items():
            tensors[name] = parameter
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
            self.optimizer.state[parameter] = {
                key: tensors[f"adam.{key}.{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }


def evaluate(sae: TopKSae, x: Tensor) -> dict[str, float]:
    """Explained variance, mean cosine and share of latents that fired on x [tokens, d_model]."""
    error, cosine = 0.0, 0.0
    fired = torch.zeros(sae.n_latents, dtype=torch.bool, device=x.device)
    for batch in torch.split(x, EVALUATION_BATCH_TOKENS):
        values, indices = sae.encode(batch)
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


def train_sae(
    params: TrainSaeParams,
    *,
    train_activations: Path,
    eval_activations: Path,
    output: Path,
    work: Path,
    report: Callable[[int, int, float], None] | None = None,
) -> int:
    """Train one SAE and write `sae.safetensors`, `cfg.json` and `history.parquet`.

    Args:
        params: the rule's slice of the config.
        train_activations: manifest of the variant's `sae_train` activations.
        eval_activations: manifest of its `eval` activations, for the held-out curve.
        output: the SAE's folder.
        work: folder for checkpoints; a run with the same params and activations resumes there.
        report: called with (step, steps, FVU of the batch).

    Returns:
        The number of optimizer steps that this call ran (less than all after a resume).

    Raises:
        UserError: damaged or foreign activations, or fewer of them than one batch.
    """
    torch.set_num_threads(params.compute.threads)
    device, recipe, keys = pick_device(params.compute.device), params.sae, params.keys
    site = keys.site
    reader = SiteReader.open(train_activations, site, key=params.activations_key)
    heldout = SiteReader.open(eval_activations, site, key=params.eval_activations_key)
    reader.check()
    heldout.check()
    n_latents = recipe.width(reader.d_model)
    per_epoch = reader.n_tokens // recipe.batch_tokens
    if per_epoch == 0:
        raise UserError(
            f"config: saes.{keys.sae}.batch_tokens: {recipe.batch_tokens} is more than the "
            f"{reader.n_tokens} cached tokens (activations.sae_train_tokens)"
        )
    n_steps = per_epoch * recipe.epochs
    scale = math.sqrt(reader.d_model) / float(reader.manifest["mean_norm"])
    x_heldout, _ = next(heldout.batches(recipe.heldout_tokens))
    x_heldout = x_heldout.to(device) * scale

    sample, _ = reader.shard(0)
    generator = torch_generator(params.seed, "sae_init", *keys.parts())
    initial = initialize(
        sample[:INIT_TOKENS] * scale, n_latents=n_latents, k=recipe.k, generator=generator
    )
    trainer = Trainer(
        recipe=recipe,
        n_steps=n_steps,
        sae=initial.to(device),
        step=0,
        unfired_tokens=torch.zeros(n_latents, dtype=torch.int64, device=device),
        history=[],
    )
    identity = [params.model_dump(mode="json"), reader.manifest, heldout.manifest]
    checkpoint = work / f"train_sae-{content_key(identity)}.safetensors"
    if checkpoint.is_file():
        trainer.load(checkpoint)
        logger.info("resumed at step %d of %d", trainer.step, n_steps)
    start = trainer.step
    batches = training_batches(reader, recipe, params.seed, keys.parts(), start_step=start)
    for batch in batches:
        lr = trainer.lr()
        fvu, auxk = trainer.train_step(batch.to(device) * scale)
        if not math.isfinite(fvu):
            raise UserError(
                f"config: saes.{keys.sae}: the loss is {fvu} at step {trainer.step}; lower lr"
            )
        if report is not None:
            report(trainer.step, n_steps, fvu)
        if trainer.step % recipe.evaluate_every_steps == 0 or trainer.step == n_steps:
            row = {
                "step": trainer.step,
                "tokens": trainer.step * recipe.batch_tokens,
                "lr": lr,
                "fvu_loss": fvu,
                "auxk_loss": auxk,
                **evaluate(trainer.sae, x_heldout),
                "dead_share": float(trainer.dead.double().mean()),
            }
            trainer.history.append(row)
            logger.info(
                "step %d of %d: FVU %.4f, held-out explained variance %.4f",
                trainer.step,
                n_steps,
                fvu,
                row["heldout_explained_variance"],
            )
        if trainer.step % recipe.checkpoint_every_steps == 0 and trainer.step < n_steps:
            trainer.save(checkpoint)

    tables.write_table(output / "history.parquet", trainer.history, tables.cell_schema("history"))
    save_sae(
        trainer.sae.scaled(1.0 / scale),
        output,
        architecture=recipe.architecture,
        dictionary=recipe.dictionary,
        keys=keys,
        seed=params.seed,
        activations_key=reader.manifest["key"],
        input_norm=float(reader.manifest["mean_norm"]),
        training=recipe.model_dump(mode="json"),
        n_steps=n_steps,
    )
    checkpoint.unlink(missing_ok=True)
    logger.info("ran %d of %d steps", trainer.step - start, n_steps)
    return trainer.step - start
