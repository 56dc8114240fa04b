"""Fidelity: the effect of a spliced reconstruction on the subject's predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nullsae.core.devices import exact
from nullsae.metrics.ce_score import ce_score
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.families import attach
from nullsae.subjects.loading import Subject

BATCH_CONTEXTS = 16
# The sums: losses under each replacement, and divergences from the clean predictions.
LOSSES = ("ce_clean", "ce_sae", "ce_zero", "ce_mean")
DIVERGENCES = ("kl_sae", "kl_zero")
# The columns of `reconstruction` and of `documents` that need a model.
COLUMNS = ("fidelity_tokens", *LOSSES, *DIVERGENCES, "ce_score")
DOCUMENT_COLUMNS = ("fidelity_tokens", *LOSSES, "kl_sae")


@dataclass(frozen=True)
class Fidelity:
    """Sums over predicted tokens, in nats, by the document of the token that is predicted."""

    by_document: dict[str, NDArray[np.float64]]
    """`fidelity_tokens`, the losses and the divergences, each [documents]."""
    by_context: dict[str, NDArray[np.float64]]
    """The same, each [contexts]."""

    def totals(self) -> dict[str, Any]:
        """Return the columns of `reconstruction`.

        Losses and divergences are means over the predicted tokens. `ce_score` (oriented as in
        SAEBench) is 1 for no harm and 0 for harm like that of zeros. It is null if zeroing does no
        clear harm over contexts: a random subject predicts no better with its activations than
        without.
        """
        sums = {name: float(values.sum()) for name, values in self.by_document.items()}
        tokens = sums.pop("fidelity_tokens")
        losses = {name: self.by_context[f"ce_{name}"] for name in ("clean", "sae", "zero")}
        score = ce_score(**losses, tokens=self.by_context["fidelity_tokens"])
        means = {name: total / tokens for name, total in sums.items()}
        return {"fidelity_tokens": int(tokens), **means, "ce_score": score}

    def of_document(self, document: int) -> dict[str, Any]:
        """Return the columns of `documents`, null for one without predicted tokens."""
        tokens = self.by_document["fidelity_tokens"]
        if document >= len(tokens) or not tokens[document]:
            return dict.fromkeys(DOCUMENT_COLUMNS)
        row = {name: float(self.by_document[name][document]) for name in DOCUMENT_COLUMNS}
        return {**row, "fidelity_tokens": int(tokens[document])}


def fidelity(
    subject: Subject,
    sae: Autoencoder,
    site: str,
    input_ids: Tensor,
    documents: NDArray[np.integer[Any]],
    mean: Tensor,
    *,
    contexts: Sequence[int],
    kept: Tensor | None = None,
) -> Fidelity:
    """Measure losses of the next token over contexts of `eval`, with the site replaced or not.

    ce_clean: the unchanged subject; ce_sae: the site replaced by its reconstruction; ce_zero, by
    zeros; ce_mean, by the split's mean activation. kl_* = KL(clean || replaced). A transcoder reads
    one site and replaces another in the same pass. Excluded tokens stay as they are, and
    predictions from them do not count.

    Args:
        subject: the variant.
        sae: on any device; activations are moved there and back.
        site: the site that the SAE reads.
        input_ids: [contexts, tokens].
        documents: [contexts, tokens], the document of each token.
        mean: [d_model], mean activation of the replaced site.
        contexts: index of each row in the split.
        kept: bool [contexts, tokens], which tokens count; all by default.
    """
    kept = torch.ones_like(input_ids, dtype=torch.bool) if kept is None else kept
    names, replaced = ("fidelity_tokens", *LOSSES, *DIVERGENCES), sae.writes_at(site)
    targets = documents[:, 1:]
    by_document = {name: np.zeros(int(documents.max()) + 1) for name in names}
    by_context = {name: np.zeros(len(input_ids)) for name in names}

    def add(name: str, start: int, values: Tensor) -> None:
        rows = slice(start, start + len(values))
        counted = (exact(values).cpu() * kept[rows, :-1]).numpy()
        np.add.at(by_document[name], targets[rows], counted)
        by_context[name][rows] = counted.sum(axis=1)

    read: dict[str, Tensor] = {}

    def see(x: Tensor) -> None:
        read[site] = x.clone()

    for start in range(0, len(input_ids), BATCH_CONTEXTS):
        batch = input_ids[start : start + BATCH_CONTEXTS]
        placed = contexts[start : start + len(batch)]
        add("fidelity_tokens", start, torch.ones(len(batch), batch.shape[1] - 1))
        clean = torch.empty(0)
        counting = kept[start : start + len(batch)]
        for name, replace in _replacements(sae, batch, mean, counting, read).items():
            with attach(subject.point(site), see) if sae.transcodes else nullcontext():
                logits = subject.logits(
                    batch, split="eval", contexts=placed, site=replaced, replace=replace
                )
            log_p = F.log_softmax(logits[:, :-1].float(), dim=-1)
            del logits
            target = batch[:, 1:].to(log_p.device, torch.int64)
            add(f"ce_{name}", start, -log_p.gather(2, target[:, :, None]).squeeze(2))
            if name == "clean":
                clean = log_p
            elif f"kl_{name}" in DIVERGENCES:
                # In place, because the logits of a batch dominate memory.
                add(f"kl_{name}", start, -clean.exp().mul_(log_p.sub_(clean)).sum(dim=-1))
            del log_p
    return Fidelity(by_document, by_context)


def spread(n_contexts: int, n_tokens: int, context_tokens: int) -> list[int]:
    """Choose contexts evenly over a split of `n_contexts`, for a total of `n_tokens`.

    The first contexts alone might come from one or two long documents. The number is rounded down
    to whole contexts, at least one.
    """
    n = min(n_contexts, max(1, n_tokens // context_tokens))
    return [index * n_contexts // n for index in range(n)]


def _replacements(
    sae: Autoencoder, input_ids: Tensor, mean: Tensor, kept: Tensor, read: Mapping[str, Tensor]
) -> dict[str, Callable[[Tensor], Tensor] | None]:
    """Yield replacements of a site's [contexts, tokens, d_model] for the tokens `input_ids`.

    They apply only where `kept`, bool [contexts, tokens], is true. `read` contains what a
    transcoder reads by the time its output is needed.
    """
    token_ids = input_ids.flatten().long()

    # A subject may be on several devices; each site reports where its own activations are.
    def reconstruct(x: Tensor) -> Tensor:
        (given,) = read.values() if sae.transcodes else (x,)
        flat = given.reshape(len(token_ids), -1).to(sae.b_dec.device, torch.float32)
        return sae.decode(*sae.encode(flat, token_ids), flat).to(x.device, x.dtype).view(x.shape)

    def where_kept(replace: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if bool(kept.all()):
            return replace
        return lambda x: torch.where(kept.to(x.device)[..., None], replace(x), x)

    return {
        "clean": None,
        "sae": where_kept(reconstruct),
        "zero": where_kept(torch.zeros_like),
        "mean": where_kept(lambda x: mean.to(x.device, x.dtype).expand_as(x)),
    }
