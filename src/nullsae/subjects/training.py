"""Training of a small GPT-NeoX on a corpus: a fixed number of steps, no clock, keyed randomness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from nullsae.corpus.store import Tokens
from nullsae.errors import UserError
from nullsae.inputs import TrainSource
from nullsae.randomness import numpy_generator, seed_of

GRAD_CLIP_NORM = 1.0
LOG_ROWS = 20


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) in float32, for matrices.

    `torch.optim.Muon` runs its Newton-Schulz iteration in bfloat16, which most CPUs emulate: it
    made this training five times slower. The update is Nesterov momentum, orthogonalized, and
    scaled by 0.2 sqrt(max(rows, columns)) so that its RMS is that of AdamW (Liu et al. 2025,
    arXiv 2502.16982).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
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
    1.2 instead of converging to 1.

    Args:
        matrix: float [rows, columns].
        steps: iterations.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def learning_rate_scale(step: int, source: TrainSource) -> float:
    """Factor on both learning rates at a step: linear rise, constant, linear fall.

    Args:
        step: counted from 0.
        source: its `steps`, `warmup_share` and `decay_share`.
    """
    warmup_steps = max(1, round(source.warmup_share * source.steps))
    decay_steps = max(1, round(source.decay_share * source.steps))
    return min(1.0, (step + 1) / warmup_steps, (source.steps - step) / decay_steps)


def train_model(
    source: TrainSource,
    tokens: Tokens,
    *,
    seed: int,
    subject: str,
    device: torch.device,
    report: Callable[[int, int, float], None] | None = None,
) -> tuple[GPTNeoXForCausalLM, dict[str, Tensor], list[dict[str, float]]]:
    """Train a subject from scratch on the `sae_train` split.

    Each step reads `batch_contexts` slices of `context_tokens` from the contexts laid end to end,
    at random offsets. The same arguments and thread count give the same bytes on a CPU.

    Args:
        source: architecture and recipe.
        tokens: the `sae_train` split.
        seed: the config's seed.
        subject: name of the subject, which keys the initialization and the batches.
        device: where to train.
        report: called after each step with (steps done, steps in all, loss in nats per token).

    Returns:
        The trained model, in eval mode on `device`, float32; the state dict before training, on
        the CPU; and a log of at most `LOG_ROWS` rows: `step`, `tokens` (seen so far) and
        `loss_nats` (mean training loss since the row before).

    Raises:
        UserError: `rotary_share` gives an odd width, or the loss is no longer finite.
    """
    context_tokens = tokens.input_ids.shape[1]
    model = _initial_model(source, tokens, seed=seed, subject=subject)
    initial = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.to(device).train()
    optimizers = _optimizers(model, source)
    flat = tokens.input_ids.reshape(-1)
    offsets = np.arange(context_tokens)
    generator = numpy_generator(seed, "subject_batches", subject)
    log: list[dict[str, float]] = []
    losses: list[float] = []
    for step in range(source.steps):
        starts = generator.integers(
            0, len(flat) - context_tokens + 1, size=(source.batch_contexts, 1)
        )
        batch = torch.from_numpy(flat[starts + offsets].astype(np.int64)).to(device)
        logits = model(input_ids=batch).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP_NORM)
        scale = learning_rate_scale(step, source)
        for optimizer, lr in zip(optimizers, (source.muon_lr, source.adamw_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"config: subjects.{subject}.source: the loss is {losses[-1]} at step {step + 1} "
                f"of {source.steps}; lower muon_lr ({source.muon_lr}) or adamw_lr "
                f"({source.adamw_lr})"
            )
        if report is not None:
            report(step + 1, source.steps, losses[-1])
        if (step + 1) % math.ceil(source.steps / LOG_ROWS) == 0 or step + 1 == source.steps:
            seen = (step + 1) * source.batch_contexts * context_tokens
            log.append({"step": step + 1, "tokens": seen, "loss_nats": sum(losses) / len(losses)})
            losses.clear()
    return model.eval(), initial, log


def _initial_model(
    source: TrainSource, tokens: Tokens, *, seed: int, subject: str
) -> GPTNeoXForCausalLM:
    """The untrained model, on the CPU in float32."""
    rotary_width = int(source.d_model // source.n_heads * source.rotary_share)
    if rotary_width < 2 or rotary_width % 2:
        raise UserError(
            f"config: subjects.{subject}.source.rotary_share: {source.rotary_share} of a head of "
            f"{source.d_model // source.n_heads} is {rotary_width} dimensions; it must be an even "
            f"number, at least 2"
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
    # transformers draws from the global CPU generator; whoever uses it finds it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "subject_init", subject))
        model = GPTNeoXForCausalLM(config)
    return model.float()


def _optimizers(model: GPTNeoXForCausalLM, source: TrainSource) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        in_block = name.startswith("gpt_neox.layers.")
        (matrices if in_block and parameter.ndim == 2 else rest).append(parameter)
    return (
        Muon(matrices, lr=source.muon_lr, weight_decay=source.weight_decay),
        torch.optim.AdamW(rest, lr=source.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
