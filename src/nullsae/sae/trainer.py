"""Gradient steps of one SAE: schedule, the step itself, exact checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullsae.activations.store import BATCH_TOKENS
from nullsae.config.compute import Precise
from nullsae.config.saes import Sae
from nullsae.core.checkpoint import SavedState, save_state
from nullsae.core.devices import exact
from nullsae.core.moments import ROUNDING
from nullsae.sae.adam import STATE, Adam
from nullsae.sae.architectures.base import Losses, TrainedSae
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.kernels import differing_share, tensor_float


def learning_rate(sae: Sae, n_latents: int) -> float:
    """Return the peak rate: as given, or base_lr / sqrt(n_latents / 2^14) (Gao et al. 2024)."""
    return sae.lr if sae.lr is not None else sae.base_lr / math.sqrt(n_latents / 2**14)


def schedule(step: int, n_steps: int, sae: Sae) -> float:
    """Return the factor on the peak rate in optimizer step `step` (0 ... n_steps - 1).

    It rises linearly over the first `warmup_share` of the steps (or `warmup_steps`), and falls
    linearly to 0 over the last `decay_share`, or over all steps after the warm-up. It is never 0.
    """
    warmup = sae.warmup_share * n_steps if sae.warmup_steps is None else float(sae.warmup_steps)
    decay = min(sae.decay_share * n_steps, n_steps - warmup)
    rise = (step + 1) / warmup if warmup >= 1 else 1.0
    fall = (n_steps - step) / decay if decay >= 1 else 1.0
    return min(1.0, rise, fall)


class Trainer:
    """State of one training run, in the scaled space where activations have mean norm sqrt(d).

    It is made with the initial weights, near which some dictionaries are kept, even if `load` then
    replaces the weights by a checkpoint's. `unfired_tokens` int64 [n_latents] counts tokens since a
    latent last fired.
    """

    def __init__(
        self,
        recipe: Sae,
        n_steps: int,
        start: Autoencoder,
        *,
        k: int,
        precision: Precise = "float32",
    ) -> None:
        """Start at the first of `n_steps`; the given weights are not copied."""
        self.recipe, self.n_steps, self.origin = recipe, n_steps, recipe.origin
        self.model: TrainedSae[Any] = recipe.training()(recipe, k, start)
        self.model.precision = self.model.precision_of(precision)
        self.step, self.seen_tokens, self.history = 0, 0, list[dict[str, Any]]()
        self.unfired_tokens = torch.zeros_like(start.b_enc, dtype=torch.int64)
        self.trained = {
            name: tensor
            for name, tensor in self.model.parameters.items()
            if name not in self.origin.frozen
        }
        self.optimizer = Adam(recipe.adam_betas)
        self.peak_lr = learning_rate(recipe, start.n_latents)
        # By default a hundredth of the run, so that there is time to revive a latent. At least a
        # hundred times the mean interval between firings, so that AuxK does not unlearn latents
        # that are merely rare. At most 10 million (Gao et al. 2024).
        longest = max(n_steps * recipe.batch_tokens // 100, 100 * start.n_latents // k)
        self.dead_after_tokens = recipe.dead_after_tokens or min(10_000_000, longest)
        self.start = self.model.w_dec.clone() if self.origin.held else None
        self._next_look = 0

    @property
    def sae(self) -> Autoencoder:
        return self.model.autoencoder()

    @property
    def dead(self) -> Tensor:
        """Return which latents count as dead and are to be revived, bool [n_latents]."""
        return self.unfired_tokens >= self.dead_after_tokens

    def _dead_now(self) -> Tensor | None:
        """Return which latents are dead; None if none is.

        The device is asked only when a latent can have died: the one that has been silent longest
        must stay silent for as many further tokens as it lacks.
        """
        if self.seen_tokens < self._next_look:
            return None
        lacking = self.dead_after_tokens - int(self.unfired_tokens.max())
        self._next_look = self.seen_tokens + lacking
        return self.dead if lacking <= 0 else None

    def silent(self) -> dict[str, Any]:
        """Return the share of latents that fired on none of the last tokens, and how many tokens.

        Their number is the one that makes a latent dead, or all tokens of a shorter training.
        """
        horizon = min(self.dead_after_tokens, self.seen_tokens)
        silent = self.unfired_tokens >= horizon
        return {"dead_share": float(exact(silent).mean()), "dead_horizon_tokens": horizon}

    def differing_choices(self, x: Tensor) -> float | None:
        """Return the share of active latents of x [tokens, d_model] that float32 would not choose.

        None if nothing is chosen in low precision.
        """
        model = self.model
        if model.LOW_PRECISION != "choice" or model.precision == "float32":
            return None
        centred = x - model.b_dec
        found, wanted = (model.chosen(centred, p) for p in (model.precision, "float32"))
        return differing_share(found, wanted, model.n_latents)

    def train_step(self, x: Tensor) -> Losses:
        """Take an optimizer step on x [batch_tokens, d_model]; return the losses before it."""
        recipe, w_dec = self.recipe, self.model.w_dec
        # Free the last step's gradients before this step's are computed.
        for parameter in self.trained.values():
            parameter.grad = None
        dead = self._dead_now()
        with tensor_float(self.model.precision == "tf32" and self.model.LOW_PRECISION == "tf32"):
            found, losses = self.model.gradients(x, dead)
        gradient = {name: found[name] for name in self.trained}
        if "W_dec" in gradient:
            decoder = gradient["W_dec"]
            # Rows have unit norm, so a gradient along a row only opposes the renormalization.
            along = torch.linalg.vecdot(decoder, w_dec)
            decoder.addcmul_(along[:, None], w_dec, value=-1.0)
        norm = torch.stack([g.norm() for g in gradient.values()]).norm()
        clip = (recipe.grad_clip_norm / (norm + 1e-6)).clamp_(max=1.0)
        for name, parameter in self.trained.items():
            parameter.grad = gradient[name].mul_(clip)
        self.optimizer.step(self.trained, gradient, self.lr())
        if "W_dec" in gradient:
            w_dec /= w_dec.norm(dim=1, keepdim=True)
        if self.start is not None:
            w_dec.copy_(self.origin.hold(w_dec, self.start))
        self.unfired_tokens += len(x)
        self.seen_tokens += len(x)
        self.unfired_tokens.masked_fill_(losses.fired, 0)
        self.step += 1
        return losses

    def lr(self) -> float:
        """The rate of the next step."""
        return self.peak_lr * schedule(self.step, self.n_steps, self.recipe)

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on, atomically, without a copy in memory."""
        tensors = self._tensors()
        for name, state in self.optimizer.state.items():
            for key, value in state.items():
                tensors[f"adam.{key}.{name}"] = value
        metadata = {
            "step": str(self.step),
            "seen_tokens": str(self.seen_tokens),
            "history": json.dumps(self.history),
        }
        save_state(path, tensors, metadata)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint written by `save`, reading it into the existing tensors.

        After an error, one of `DAMAGED`, the contents of memory are unusable.
        """
        saved, tensors = SavedState.open(path), self._tensors()
        self.step = int(saved.metadata["step"])
        self.seen_tokens = int(saved.metadata["seen_tokens"])
        self.history = json.loads(saved.metadata["history"])
        self._next_look = 0
        # Adam has no state before the first step.
        for name, parameter in self.trained.items() if self.step else ():
            own = {key: f"adam.{key}.{name}" for key in STATE}
            state = {key: saved.room(found, parameter.device) for key, found in own.items()}
            self.optimizer.state[name] = state
            tensors |= {found: state[key] for key, found in own.items()}
        saved.read_into(tensors)

    def _tensors(self) -> dict[str, Tensor]:
        """Return the state, except for the optimizer's."""
        buffers = {f"buffer.{name}": value for name, value in self.model.buffers.items()}
        return {"unfired_tokens": self.unfired_tokens, **self.model.parameters, **buffers}


def evaluate(
    sae: Autoencoder, x: Tensor, ids: Tensor | None = None, outputs: Tensor | None = None
) -> dict[str, Any]:
    """Measure explained variance, mean cosine, L0 and share of fired latents on x [tokens,
    d_model].

    Explained variance is None if all tokens are equal. `ids` are token ids int64 [tokens], if the
    architecture reads them; `outputs` [tokens, d_out] is a transcoder's target, by default x.
    """
    wanted = x if outputs is None else outputs
    error, cosine, active = 0.0, 0.0, 0
    fired = torch.zeros(sae.n_latents, dtype=torch.bool, device=x.device)
    for start in range(0, len(x), BATCH_TOKENS):
        part = slice(start, start + BATCH_TOKENS)
        batch = x[part]
        values, indices = sae.encode(batch, None if ids is None else ids[part])
        output = sae.decode(values, indices, batch)
        error += float((exact(wanted[part]) - exact(output)).square().sum())
        cosine += float(exact(torch.cosine_similarity(wanted[part], output, dim=1)).sum())
        fired[indices[values > 0]] = True
        active += int((values != 0).sum())
    all_wanted = exact(wanted)
    variance = float((all_wanted - all_wanted.mean(dim=0)).square_().sum())
    varies = variance > ROUNDING * float(all_wanted.square().sum())
    return {
        "heldout_explained_variance": 1.0 - error / variance if varies else None,
        "heldout_cosine": cosine / len(x),
        "heldout_l0": active / len(x),
        "heldout_alive_share": float(exact(fired).mean()),
    }
