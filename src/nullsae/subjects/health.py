"""How well a variant predicts text, and what its activations look like."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.core.devices import exact
from nullsae.core.errors import UserError
from nullsae.core.moments import Moments
from nullsae.corpus.store import Tokens
from nullsae.subjects.families import text_config
from nullsae.subjects.loading import Subject

LOSS_BATCH_CONTEXTS = 32
# Logits of a batch in bytes; with a large vocabulary, batches have fewer contexts.
MAX_LOGIT_BYTES = 2**28
# Tokens of `eval`, from its start, whose activations determine the health of a variant.
HEALTH_TOKENS = 8192
HEALTH_BATCH_TOKENS = 2048
# Contexts of `eval`, from its start, that are read with and without BOS.
BOS_CONTEXTS = 16


def heldout_loss(
    subject: Subject,
    tokens: Tokens,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, int]:
    """Return the mean next-token loss over a split, in nats, and the number of predicted tokens.

    Predicted tokens are all but the first of each context, or all but BOS. `progress` is called
    with (tokens done, tokens in total).
    """
    ids, first = torch.from_numpy(tokens.input_ids), tokens.first_predicted
    context_bytes = ids.shape[1] * text_config(subject.model).vocab_size * 4
    n_batch = min(LOSS_BATCH_CONTEXTS, max(1, MAX_LOGIT_BYTES // context_bytes))
    total = 0.0
    for start in range(0, len(ids), n_batch):
        batch = ids[start : start + n_batch]
        contexts = range(start, start + len(batch))
        logits = subject.logits(batch, split="eval", contexts=contexts)
        total += float(_losses(logits, batch, first).sum())
        progress(contexts.stop * ids.shape[1], ids.numel())
    n = tokens.input_ids[:, first:].size
    loss = total / n
    if not math.isfinite(loss):
        raise UserError(f"{subject.recipe['variant']}: the held-out loss is {loss}")
    return loss, n


def _losses(logits: Tensor, ids: Tensor, first: int) -> Tensor:
    """Return losses of tokens from the position `first` on: float64 [contexts, tokens - first].

    Args:
        logits: [contexts, tokens, vocab].
        ids: int [contexts, tokens].
        first: at least 1.
    """
    logits = logits[:, first - 1 : -1].float()
    target = ids[:, first:].to(logits.device, torch.int64)
    losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return exact(losses).reshape(target.shape)


def bos_check(subject: Subject, tokens: Tokens) -> dict[str, Any] | None:
    """Compare the loss on a few contexts of `eval` with BOS and without.

    Both losses are over the same tokens, which differ only in BOS before them. The corpus' choice
    is worse if it loses by more than twice the standard error of the difference over contexts.

    Returns:
        None without a BOS. Else `prepended`, the corpus' choice, `loss_nats`, `other_loss_nats`,
        `n_contexts`, `n_predicted_tokens`, and `warning`, a line if the other choice is better.
    """
    bos, ids = tokens.bos_token_ids, torch.from_numpy(tokens.input_ids[:BOS_CONTEXTS])
    if not bos or ids.shape[1] < len(bos) + 3:
        return None
    # Short enough for both.
    text = ids[:, tokens.n_bos :][:, : ids.shape[1] - len(bos)]
    before = torch.tensor(bos, dtype=text.dtype).expand(len(text), -1)
    context_bytes = ids.shape[1] * text_config(subject.model).vocab_size * 4
    n_batch = max(1, MAX_LOGIT_BYTES // context_bytes)
    found = {}
    for prepended in (True, False):
        rows = torch.cat([before, text], dim=1) if prepended else text
        parts = []
        for start in range(0, len(rows), n_batch):
            batch = rows[start : start + n_batch]
            logits = subject.logits(batch, split="eval", contexts=range(start, start + len(batch)))
            # Without BOS, nothing precedes the first token of the text to predict it from.
            parts.append(_losses(logits, batch, 1 + len(bos) * prepended).mean(dim=1).cpu())
        found[prepended] = torch.cat(parts)
    chosen = bool(tokens.n_bos)
    loss, other = (float(found[choice].mean()) for choice in (chosen, not chosen))
    lost, warning = found[chosen] - found[not chosen], None
    error = float(lost.std()) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
    if loss - other > 2 * error:
        kept, instead = ("with", "without") if chosen else ("without", "with")
        warning = (
            f"the trained subject's loss on {len(text)} contexts is {loss:.2f} nats {kept} BOS, as "
            f"in the corpus, and {other:.2f} {instead}: set corpora.*.prepend_bos to "
            f"{str(not chosen).lower()}"
        )
    return {
        "prepended": chosen,
        "loss_nats": loss,
        "other_loss_nats": other,
        "n_contexts": len(text),
        "n_predicted_tokens": len(text) * (text.shape[1] - 1),
        "warning": warning,
    }


def activation_health(subject: Subject, tokens: Tokens) -> dict[str, Any]:
    """Describe the output of each block over the first `HEALTH_TOKENS` tokens of a split.

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
