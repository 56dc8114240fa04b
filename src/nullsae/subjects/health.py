"""How well a variant predicts text, and what its activations look like."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from nullsae.core.errors import UserError
from nullsae.core.moments import Moments
from nullsae.corpus.store import Tokens
from nullsae.subjects.families import text_config
from nullsae.subjects.loading import Subject

LOSS_BATCH_CONTEXTS = 32
# Logits of a batch in bytes: with a large vocabulary fewer contexts go into it.
MAX_LOGIT_BYTES = 2**28
# Tokens of `eval`, from its start, whose activations give the health of a variant.
HEALTH_TOKENS = 8192
HEALTH_BATCH_TOKENS = 2048


def heldout_loss(subject: Subject, tokens: Tokens) -> tuple[float, int]:
    """Mean next-token loss over a split, in nats, and the number of tokens that are predicted."""
    ids = torch.from_numpy(tokens.input_ids)
    context_bytes = ids.shape[1] * text_config(subject.model).vocab_size * 4
    n_batch = min(LOSS_BATCH_CONTEXTS, max(1, MAX_LOGIT_BYTES // context_bytes))
    total = 0.0
    for start in range(0, len(ids), n_batch):
        batch = ids[start : start + n_batch]
        contexts = range(start, start + len(batch))
        logits = subject.logits(batch, split="eval", contexts=contexts)[:, :-1].float()
        target = batch[:, 1:].to(logits.device, torch.int64)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        total += float(losses.double().sum())
    n = tokens.input_ids[:, 1:].size
    loss = total / n
    if not math.isfinite(loss):
        raise UserError(f"{subject.recipe['variant']}: the held-out loss is {loss}")
    return loss, n


def activation_health(subject: Subject, tokens: Tokens) -> dict[str, Any]:
    """How the output of each block looks over the first `HEALTH_TOKENS` tokens of a split.

    Returns:
        `n_tokens`, and in `sites`, by name, the figures of `Moments.health`.
    """
    context_tokens = tokens.input_ids.shape[1]
    n_tokens = min(HEALTH_TOKENS, tokens.input_ids.size)
    ids = torch.from_numpy(tokens.input_ids)[: math.ceil(n_tokens / context_tokens)]
    n_batch = max(1, HEALTH_BATCH_TOKENS // context_tokens)
    sites = subject.block_outputs
    moments = {site: Moments(subject.width(site)) for site in sites}
    for start in range(0, len(ids), n_batch):
        batch = ids[start : start + n_batch]
        contexts = range(start, start + len(batch))
        found = subject.activations(batch, split="eval", contexts=contexts, sites=sites)
        for site in sites:
            moments[site].add(found[site].flatten(0, 1)[: n_tokens - start * context_tokens])
    return {"n_tokens": n_tokens, "sites": {site: moments[site].health() for site in sites}}
