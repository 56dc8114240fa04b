"""Fidelity: what splicing a reconstruction into the subject does to its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.topk import TopKSae
from nullsae.subjects.loading import Subject

BATCH_CONTEXTS = 16
# ce_zero - ce_clean must exceed both for ce_score to mean anything: this many of its standard
# errors, and this many nats per token. A ratio over less is noise, however sure its sign.
CLEAR_STANDARD_ERRORS = 3.0
CLEAR_NATS = 0.1


def fidelity(
    subject: Subject, sae: TopKSae, site: str, input_ids: Tensor, mean: Tensor
) -> dict[str, Any]:
    """Cross-entropies in nats per predicted token, over the first contexts of `eval`.

    ce_clean: the subject as it is; ce_sae: the site replaced by its reconstruction; ce_zero, by
    zeros; ce_mean, by the split's mean activation. kl_* = KL(clean || replaced), nats per token.
    ce_score = (ce_zero - ce_sae) / (ce_zero - ce_clean) (SAEBench's direction): 1 is no harm, 0
    as bad as zeros. It is null unless the denominator exceeds 0.1 nats and 3 of its standard
    errors over contexts: a random subject predicts no better with its activations than without.

    Args:
        subject: the variant.
        sae: on the subject's device.
        site: where to splice.
        input_ids: [contexts, tokens].
        mean: [d_model], mean activation of the site.
    """
    mean = mean.to(subject.device)

    def reconstruct(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1).float()
        return sae.decode(*sae.encode(flat)).to(x.dtype).view(x.shape)

    replacements: dict[str, Callable[[Tensor], Tensor] | None] = {
        "clean": None,
        "sae": reconstruct,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x.dtype).expand_as(x),
    }
    losses: dict[str, list[Tensor]] = {name: [] for name in replacements}
    divergences: dict[str, list[Tensor]] = {"sae": [], "zero": []}
    for start in range(0, len(input_ids), BATCH_CONTEXTS):
        batch = input_ids[start : start + BATCH_CONTEXTS]
        contexts = range(start, start + len(batch))
        target = batch[:, 1:].to(subject.device, torch.int64)
        clean = torch.empty(0)
        for name, replace in replacements.items():
            logits = subject.logits(
                batch, split="eval", contexts=contexts, site=site, replace=replace
            )
            log_p = F.log_softmax(logits[:, :-1].float(), dim=-1)
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
