"""Fidelity: what splicing a reconstruction into the subject does to its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.loading import Subject

BATCH_CONTEXTS = 16
# ce_zero - ce_clean must exceed both for ce_score to mean anything: this many of its standard
# errors, and this many nats per token. A ratio over less is noise, however sure its sign.
CLEAR_STANDARD_ERRORS = 3.0
CLEAR_NATS = 0.1
# The columns of `reconstruction` that need a model.
COLUMNS = (
    *("fidelity_tokens", "ce_clean", "ce_sae", "ce_zero", "ce_mean"),
    *("kl_sae", "kl_zero", "ce_score"),
)


def fidelity(
    subject: Subject, sae: Autoencoder, site: str, input_ids: Tensor, mean: Tensor
) -> dict[str, Any]:
    """Cross-entropies in nats per predicted token, over the first contexts of `eval`.

    ce_clean: the subject as it is; ce_sae: the site replaced by its reconstruction; ce_zero, by
    zeros; ce_mean, by the split's mean activation. kl_* = KL(clean || replaced), nats per token.
    ce_score = (ce_zero - ce_sae) / (ce_zero - ce_clean) (SAEBench's direction): 1 is no harm, 0
    as bad as zeros. It is null unless the denominator exceeds 0.1 nats and 3 of its standard
    errors over contexts: a random subject predicts no better with its activations than without.

    Args:
        subject: the variant.
        sae: on any device; activations are brought there and back.
        site: where to splice.
        input_ids: [contexts, tokens].
        mean: [d_model], mean activation of the site.
    """
    losses: dict[str, list[Tensor]] = {name: [] for name in ("clean", "sae", "zero", "mean")}
    divergences: dict[str, list[Tensor]] = {"sae": [], "zero": []}
    for start in range(0, len(input_ids), BATCH_CONTEXTS):
        batch = input_ids[start : start + BATCH_CONTEXTS]
        contexts = range(start, start + len(batch))
        clean = torch.empty(0)
        for name, replace in _replacements(sae, batch, mean).items():
            logits = subject.logits(
                batch, split="eval", contexts=contexts, site=site, replace=replace
            )
            log_p = F.log_softmax(logits[:, :-1].float(), dim=-1)
            target = batch[:, 1:].to(log_p.device, torch.int64)
            nll = -log_p.gather(2, target[:, :, None]).squeeze(2)
            losses[name].append(nll.double().mean(dim=1).cpu())
            if name == "clean":
                clean = log_p
            elif name in divergences:
                kl = (clean.exp() * (clean - log_p)).sum(dim=-1)
                divergences[name].append(kl.double().mean(dim=1).cpu())
    per_context = {name: torch.cat(parts) for name, parts in losses.items()}
    row: dict[str, Any] = {f"ce_{name}": float(x.mean()) for name, x in per_context.items()}
    row |= {f"kl_{name}": float(torch.cat(parts).mean()) for name, parts in divergences.items()}
    row["fidelity_tokens"] = input_ids[:, 1:].numel()
    row["ce_score"] = ce_score(per_context)
    return row


def _replacements(
    sae: Autoencoder, input_ids: Tensor, mean: Tensor
) -> dict[str, Callable[[Tensor], Tensor] | None]:
    """What stands in for a site's [contexts, tokens, d_model], the tokens being `input_ids`.

    A subject may lie on several devices: each site says where its own activations are.
    """
    token_ids = input_ids.flatten().long()

    def reconstruct(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1).to(sae.b_dec.device, torch.float32)
        return sae.decode(*sae.encode(flat, token_ids)).to(x.device, x.dtype).view(x.shape)

    return {
        "clean": None,
        "sae": reconstruct,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x.device, x.dtype).expand_as(x),
    }


def ce_score(per_context: dict[str, Tensor]) -> float | None:
    """The share of the loss that the SAE recovers, or None where zeroing does no clear harm.

    Args:
        per_context: float64 [contexts] mean losses under `clean`, `sae` and `zero`.
    """
    harm = per_context["zero"] - per_context["clean"]
    if len(harm) < 2:
        return None
    standard_error = float(harm.std()) / math.sqrt(len(harm))
    if float(harm.mean()) <= max(CLEAR_NATS, CLEAR_STANDARD_ERRORS * standard_error):
        return None
    return float((per_context["zero"] - per_context["sae"]).mean() / harm.mean())
