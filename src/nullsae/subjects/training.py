"""Training of a small GPT-NeoX on a corpus: a fixed number of steps, no clock, keyed randomness."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from nullsae.config.subjects import TrainSource
from nullsae.core.checkpoint import DAMAGED, SavedState, save_state
from nullsae.core.errors import UserError, first_line
from nullsae.core.memory import keep_freed
from nullsae.core.randomness import numpy_generator, seed_of
from nullsae.core.stopping import StoppedError, stoppable
from nullsae.corpus.store import Tokens

logger = logging.getLogger(__name__)

GRAD_CLIP_NORM = 1.0
LOG_ROWS = 20
# Limits the work lost to a kill without SIGTERM. Resuming is exact, so timing affects no results.
CHECKPOINT_SECONDS = 120.0


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) in float32, for matrices.

    `torch.optim.Muon` runs its Newton-Schulz iteration in bfloat16, which most CPUs emulate; it
    made this training five times slower. The update is Nesterov momentum, orthogonalized, and
    scaled by 0.2 sqrt(max(rows, columns)) so that its RMS is that of AdamW (Liu et al. 2025, arXiv
    2502.16982).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - momentum)
                update = orthogonalize(gradient.lerp(state["momentum"], momentum))
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values of a matrix near 1, keeping its singular vectors.

    Quintic Newton-Schulz iteration with Jordan's coefficients, which ends between about 0.7 and
    1.2 instead of converging to 1. The matrix is float [rows, columns].
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def learning_rate_scale(step: int, source: TrainSource) -> float:
    """Return the factor on both learning rates at a step: linear rise, constant, linear fall."""
    warmup_steps = max(1, round(source.warmup_share * source.steps))
    decay_steps = max(1, round(source.decay_share * source.steps))
    return min(1.0, (step + 1) / warmup_steps, (source.steps - step) / decay_steps)


class Training:
    """The state that the next step depends on."""

    def __init__(self, model: GPTNeoXForCausalLM, source: TrainSource) -> None:
        """Start at the first step with a model's initial weights.

        Muon moves the matrices of the blocks, AdamW embeddings, norms and biases.
        """
        self.model, self.source, self.step = model, source, 0
        self.log: list[dict[str, float]] = []
        self.losses: list[float] = []
        """Losses since the last row of the log, in nats per token."""
        inside: dict[str, Tensor] = {}
        rest: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            in_block = name.startswith("gpt_neox.layers.") and parameter.ndim == 2
            (inside if in_block else rest)[name] = parameter
        muon = Muon(inside.values(), lr=source.muon_lr, weight_decay=source.weight_decay)
        adamw = torch.optim.AdamW(
            rest.values(), lr=source.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.optimizers: dict[torch.optim.Optimizer, dict[str, Tensor]] = {
            muon: inside,
            adamw: rest,
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically, without a copy in memory."""
        tensors = self._parameters()
        for optimizer, parameters in self.optimizers.items():
            for name, parameter in parameters.items():
                for key, value in optimizer.state[parameter].items():
                    tensors[f"optimizer.{key}.{name}"] = value
        kept = {"step": self.step, "log": self.log, "losses": self.losses}
        save_state(path, tensors, {"training": json.dumps(kept)})

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote, reading it into the existing tensors.

        Raises:
            One of `DAMAGED`: the contents of memory are then unusable.
        """
        saved, tensors = SavedState.open(path), self._parameters()
        kept = json.loads(saved.metadata["training"])
        self.step, self.log, self.losses = kept["step"], kept["log"], kept["losses"]
        owners = {
            name: (parameter, optimizer.state[parameter])
            for optimizer, parameters in self.optimizers.items()
            for name, parameter in parameters.items()
        }
        for found in saved.tensors:
            if found.startswith("optimizer."):
                _, key, name = found.split(".", 2)
                parameter, state = owners[name]
                # AdamW counts its steps on the CPU.
                device = torch.device("cpu") if key == "step" else parameter.device
                tensors[found] = state[key] = saved.room(found, device)
        saved.read_into(tensors)

    def _parameters(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {f"parameter.{name}": parameter.detach() for name, parameter in named}

    def run(
        self, tokens: Tokens, seed: int, subject: str, done: Callable[[int, int, float], None]
    ) -> None:
        """Take the remaining steps, each followed by `done`."""
        source, context_tokens = self.source, tokens.input_ids.shape[1]
        length = context_tokens - tokens.n_bos
        n_starts = len(tokens.input_ids) * length - length + 1
        generator = numpy_generator(seed, "subject_batches", subject)
        for step in range(1, source.steps + 1):
            # Also drawn for the steps of an earlier run, because the generator has no other memory
            # of them.
            starts = generator.integers(0, n_starts, size=(source.batch_contexts, 1))
            if step <= self.step:
                continue
            loss = self._step(torch.from_numpy(text_from(tokens, starts.reshape(-1))))
            self.losses.append(loss)
            self.step = step
            if not math.isfinite(loss):
                raise UserError(
                    f"config: subjects.{subject}.source: the loss is {loss} at step {step} of "
                    f"{source.steps}; lower muon_lr ({source.muon_lr}) or adamw_lr "
                    f"({source.adamw_lr})"
                )
            if step % math.ceil(source.steps / LOG_ROWS) == 0 or step == source.steps:
                seen = step * source.batch_contexts * context_tokens
                mean = sum(self.losses) / len(self.losses)
                self.log.append({"step": step, "tokens": seen, "loss_nats": mean})
                self.losses.clear()
            done(step, source.steps, loss)

    def _step(self, batch: Tensor) -> float:
        """Take a step on token ids int64 [contexts, context_tokens]; return the loss before."""
        batch = batch.to(self.model.device)
        logits = self.model(input_ids=batch).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP_NORM)
        scale = learning_rate_scale(self.step, self.source)
        rates = (self.source.muon_lr, self.source.adamw_lr)
        for optimizer, lr in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = lr * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()


def train_model(
    source: TrainSource,
    tokens: Tokens,
    *,
    seed: int,
    subject: str,
    device: torch.device,
    checkpoint: Path,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[GPTNeoXForCausalLM, dict[str, Tensor], list[dict[str, float]]]:
    """Train a subject from scratch on the `sae_train` split.

    Each step reads `batch_contexts` slices of `context_tokens` from the concatenated contexts, at
    random offsets. The same arguments and thread count give the same bytes on a CPU, even if a
    training was stopped and resumed.

    Args:
        source: architecture and recipe.
        tokens: the `sae_train` split.
        seed: the config's seed.
        subject: name of the subject, which keys the initialization and the batches.
        device: where to train.
        checkpoint: file for the state of the training, which resumes from it if it exists. It is
            written every `CHECKPOINT_SECONDS`, on SIGTERM, and after the last step. The caller
            derives its name from everything that the training depends on, and removes it.
        progress: called after each step with (steps done, steps in total, loss in nats per token).

    Returns:
        The trained model, in eval mode on `device`, float32; the state dict before training, on
        the CPU; and a log of at most `LOG_ROWS` rows: `step`, `tokens` (seen so far) and
        `loss_nats` (mean training loss since the previous row).

    Raises:
        StoppedError: SIGTERM came, and there is a checkpoint.
        UserError: `rotary_share` gives an odd width, or the loss is no longer finite.
    """
    keep_freed()
    model = _initial_model(source, tokens, seed=seed, subject=subject)
    initial = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.to(device).train()
    training = Training(model, source)
    if checkpoint.is_file():
        try:
            training.load(checkpoint)
            logger.info("resumed at step %d of %d", training.step, source.steps)
        except DAMAGED as error:
            text = "warning: %s: damaged (%s); training restarts"
            logger.warning(text, checkpoint, first_line(error))
            model.load_state_dict(initial)
            training = Training(model, source)

    def leave() -> None:
        training.save(checkpoint)
        raise StoppedError(
            f"stopped by {stop.signal} at step {training.step} of {source.steps}; "
            f"run again to continue from there ({checkpoint})"
        )

    with stoppable() as stop:
        saved = time.monotonic()

        def done(step: int, steps: int, loss: float) -> None:
            nonlocal saved
            if progress is not None:
                progress(step, steps, loss)
            stop.here(leave)
            if step == steps or time.monotonic() - saved > CHECKPOINT_SECONDS:
                training.save(checkpoint)
                saved = time.monotonic()

        training.run(tokens, seed, subject, done)
    return model.eval(), initial, training.log


def text_from(tokens: Tokens, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return contexts that begin anywhere in the text of a split, with BOS as in the split.

    Args:
        tokens: the split.
        starts: first token of each, counted without BOS, [n].

    Returns:
        Token ids int64 [n, context_tokens].
    """
    context_tokens, n_bos = tokens.input_ids.shape[1], tokens.n_bos
    row, at = np.divmod(starts[:, None] + np.arange(context_tokens - n_bos), context_tokens - n_bos)
    before = np.broadcast_to(tokens.input_ids[0, :n_bos], (len(starts), n_bos))
    return np.hstack([before, tokens.input_ids[row, n_bos + at]]).astype(np.int64)


def _initial_model(
    source: TrainSource, tokens: Tokens, *, seed: int, subject: str
) -> GPTNeoXForCausalLM:
    """Make the untrained model, on the CPU in float32."""
    head_width = source.d_model // source.n_heads
    rotary_width = int(head_width * source.rotary_share)
    if rotary_width < 2 or rotary_width % 2:
        raise UserError(
            f"config: subjects.{subject}.source.rotary_share: {source.rotary_share} of a head of "
            f"{head_width} is {rotary_width} dimensions; it must be an even number, at least 2"
        )
    eos_token_id = tokens.manifest["eos_token_id"]
    config = GPTNeoXConfig(
        vocab_size=tokens.manifest["vocab_size"],
        hidden_size=source.d_model,
        num_hidden_layers=source.n_layers,
        num_attention_heads=source.n_heads,
        intermediate_size=4 * source.d_model,
        max_position_embeddings=tokens.input_ids.shape[1],
        use_parallel_residual=True,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        use_cache=False,
        attn_implementation="sdpa",
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": source.rotary_share,
        },
    )
    # transformers draws from the global CPU generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "subject_init", subject))
        model = GPTNeoXForCausalLM(config)
    return model.float()
