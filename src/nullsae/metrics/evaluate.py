"""Evaluation of one SAE on the `eval` split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from nullsae import tables
from nullsae.activations.store import SiteReader, document_of
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.metrics.fidelity import fidelity
from nullsae.metrics.reconstruction import ReconstructionSums
from nullsae.metrics.token_lookup import fit_token_means, token_lookup_r2
from nullsae.params import EvaluateSaeParams
from nullsae.sae.files import load_sae
from nullsae.subjects.loading import load_subject, pick_device

BATCH_TOKENS = 4096


def evaluate_sae(
    params: EvaluateSaeParams,
    *,
    sae: Path,
    model: Path,
    train_activations: Path,
    eval_activations: Path,
    train_tokens: Path,
    eval_tokens: Path,
    reconstruction: Path,
    documents: Path,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Write the tables `reconstruction` (one row) and `documents` of one SAE.

    Args:
        params: the rule's slice of the config.
        sae: `cfg.json` of the SAE.
        model: `recipe.json` of the variant, for cross-entropy.
        train_activations: manifest of the `sae_train` activations: token means are fitted there.
        eval_activations: manifest of the `eval` activations: everything is measured there.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of its `eval` split.
        reconstruction: output table.
        documents: output table.
        report: called with (tokens done, tokens in all).
    """
    torch.set_num_threads(params.compute.threads)
    device, site = pick_device(params.compute.device), params.keys.site
    coder, config = load_sae(sae)
    coder = coder.to(device)
    heldout = SiteReader.open(eval_activations, site, key=params.eval_activations_key)
    fitted = SiteReader.open(train_activations, site, key=params.activations_key)
    heldout.check()
    fitted.check()
    tokens, fit_tokens = load_tokens(eval_tokens), load_tokens(train_tokens)

    sums = ReconstructionSums(
        mean=heldout.mean(),
        n_documents=int(tokens.document_id.max()) + 1,
        n_latents=coder.n_latents,
    )
    done = 0
    for x, position in heldout.batches(BATCH_TOKENS):
        values, indices = coder.encode(x.to(device))
        output = coder.decode(values, indices)
        sums.add(x, output, values, indices, document_of(position, tokens.document_id))
        done += len(x)
        if report is not None:
            report(done, heldout.n_tokens)

    vocab_size = int(tokens.manifest["vocab_size"])
    means, _ = fit_token_means(_with_ids(fitted, fit_tokens), vocab_size, fitted.d_model)
    lookup = token_lookup_r2(means, _with_ids(heldout, tokens), heldout.mean())
    subject = load_subject(model, device)
    n_contexts = max(1, params.evaluation.fidelity_tokens // tokens.input_ids.shape[1])
    contexts = torch.from_numpy(tokens.input_ids[:n_contexts])
    row = {
        "n_latents": coder.n_latents,
        "d_model": config.d_model,
        **sums.totals(),
        "token_lookup_r2": lookup,
        **fidelity(subject, coder, site, contexts, heldout.mean()),
    }
    tables.write_table(reconstruction, [row], tables.cell_schema("reconstruction"))
    tables.write_table(documents, sums.documents(), tables.cell_schema("documents"))


def _with_ids(reader: SiteReader, tokens: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of activations with the token ids at their positions."""
    ids = torch.from_numpy(tokens.input_ids).flatten().long()
    for x, position in reader.batches(BATCH_TOKENS):
        yield x, ids[position]
