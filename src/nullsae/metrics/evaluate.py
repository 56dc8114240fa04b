"""Evaluation of SAEs on the `eval` split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullsae import tables
from nullsae.activations.passes import batches_together, open_site
from nullsae.activations.store import SiteReader, document_of
from nullsae.core.errors import UserError
from nullsae.core.moments import SHARES, Moments
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.metrics import EvaluateSaeParams
from nullsae.metrics.fidelity import COLUMNS, DOCUMENT_COLUMNS, Fidelity, fidelity, spread
from nullsae.metrics.geometry import decoder_geometry
from nullsae.metrics.reconstruction import ReconstructionSums, explained
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.sae.token_means import TokenMeans, token_ids
from nullsae.subjects.loading import pick_device, shared_subject

# Tokens of eval, from its start, that the covariance is taken over.
HEALTH_TOKENS = 65_536
NO_VARIANCE = "the site has no variance: all tokens have the same activation"


@dataclass(frozen=True)
class OneSae:
    """An SAE to evaluate, and where its tables go."""

    params: EvaluateSaeParams
    sae: Path
    """Its `cfg.json`."""
    reconstruction: Path
    """One row."""
    documents: Path
    geometry: Path
    """One row."""


def evaluate_sae(
    params: EvaluateSaeParams,
    *,
    sae: Path,
    reconstruction: Path,
    documents: Path,
    geometry: Path,
    **files: Any,
) -> None:
    """`evaluate_together` of one SAE."""
    evaluate_together([OneSae(params, sae, reconstruction, documents, geometry)], **files)


def evaluate_together(
    saes: Sequence[OneSae],
    *,
    model: Path | None,
    train_activations: Path,
    eval_activations: Path,
    train_tokens: Path,
    eval_tokens: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the tables `reconstruction` and `geometry` (one row each) and `documents` of each SAE.

    All are of one variant, and one pass over each split serves them all. Memory holds all SAEs, the
    sums of each document, and means of each token at each site; it does not grow with the number of
    tokens, which are mapped from their files like activations.

    Args:
        saes: at any sites.
        model: `recipe.json` of the variant, for cross-entropy; None for `gaussian` and floors,
            which have none: their columns of fidelity are null.
        train_activations: manifest of the `sae_train` activations: token means are fitted there.
        eval_activations: manifest of the `eval` activations: everything is measured there.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of its `eval` split.
        progress: called with (tokens done, tokens in all), over all sites.

    Raises:
        UserError: a model that is missing or does not belong here, or activations that are
            missing, damaged, of another config or of another width than an SAE's.
    """
    torch.set_num_threads(saes[0].params.compute.threads)
    device = pick_device(saes[0].params.compute.device)
    tokens, fit_tokens = load_tokens(eval_tokens), load_tokens(train_tokens)
    measured, fitted = [], {}
    for one in saes:
        params, site = one.params, one.params.keys.site
        coder, config = load_sae(one.sae)
        of_sae = (config.d_model, one.sae, device)
        heldout = open_for(eval_activations, site, params.eval_activations_key, *of_sae)
        fitted[site] = open_for(train_activations, site, params.activations_key, *of_sae)
        # What was sampled names the activations that it is fitted to, and has no model.
        if (model is None) != ("fitted" in heldout.manifest):
            captured = "captured from a model; give its recipe.json"
            how = captured if model is None else "sampled, from no model; leave it out"
            raise UserError(f"--model: {model or 'not given'}, but {heldout.folder} was {how}")
        measured.append(Measured(one, coder.to(device), heldout, tokens))
    means = fit_means(fitted, fit_tokens, int(tokens.manifest["vocab_size"]))
    looked_up = _reconstruct(measured, tokens, {s: m for s, (m, _) in means.items()}, progress)
    for each in measured:
        site = each.one.params.keys.site
        _write(each, model, tokens, looked_up[site], means[site][1])


def _write(
    each: Measured, model: Path | None, tokens: Tokens, looked_up: np.ndarray, n_fitted: int
) -> None:
    """The tables of one SAE, after the pass."""
    params, coder, heldout, sums = each.one.params, each.coder, each.heldout, each.sums
    spliced = None if model is None else _spliced(params, model, coder, heldout, tokens)
    health = each.moments.health()
    row = {
        "n_latents": coder.n_latents,
        "d_model": heldout.d_model,
        "reason": NO_VARIANCE if heldout.is_constant else None,
        **sums.totals(),
        "explained_variance_all_tokens": each.of_all_tokens(),
        "n_tokens_excluded": heldout.n_excluded,
        "excluded_variance_share": heldout.manifest["excluded"]["variance_share"],
        **{name: health[name] for name in SHARES},
        "token_lookup_r2": explained(
            float(looked_up.sum()), float(sums.by_document["squared_deviation"].sum())
        ),
        "token_lookup_tokens": n_fitted,
        **(dict.fromkeys(COLUMNS) if spliced is None else spliced.totals()),
    }
    without = dict.fromkeys(DOCUMENT_COLUMNS)
    of_documents = [
        own
        | {"token_lookup_error": float(looked_up[own["document"]])}
        | (without if spliced is None else spliced.of_document(own["document"]))
        for own in sums.documents()
    ]
    shape = decoder_geometry(coder, params.seed)
    tables.write_table(each.one.reconstruction, [row], tables.cell_schema("reconstruction"))
    tables.write_table(each.one.documents, of_documents, tables.cell_schema("documents"))
    tables.write_table(each.one.geometry, [shape], tables.cell_schema("geometry"))


class Measured:
    """What a pass over `eval` adds up for one SAE."""

    def __init__(
        self, one: OneSae, coder: Autoencoder, heldout: SiteReader, tokens: Tokens
    ) -> None:
        """Start at zero; `coder` lies on the device that computes."""
        self.one, self.coder, self.heldout, self.tokens = one, coder, heldout, tokens
        n_documents, mean = int(tokens.document_id.max()) + 1, heldout.mean()
        self.sums, self.rest = (
            ReconstructionSums(mean=mean, n_documents=n_documents, n_latents=coder.n_latents)
            for _ in range(2)
        )
        self.moments = Moments(heldout.d_model, device=coder.b_dec.device)
        self.left_out = torch.zeros(heldout.d_model, dtype=torch.float64)

    def add(self, x: Tensor, position: Tensor, documents: np.ndarray, *, counts: bool) -> None:
        """Add tokens that count, or that do not: activations float32 [n, d_model]."""
        ids = token_ids(self.tokens, position)
        values, indices = self.coder.encode(x.to(self.coder.b_dec.device), ids)
        output = self.coder.decode(values, indices)
        (self.sums if counts else self.rest).add(x, output, values, indices, documents)
        if counts:
            self.moments.add(x[: HEALTH_TOKENS - self.moments.n])
        else:
            self.left_out += (x.double() - self.heldout.mean()).sum(dim=0)

    def of_all_tokens(self) -> float | None:
        """Explained variance over all tokens, excluded ones too, about the mean of all."""
        error, deviation = (
            sum(float(s.by_document[name].sum()) for s in (self.sums, self.rest))
            for name in ("squared_error", "squared_deviation")
        )
        # About the mean of all instead of that of the tokens that count (Steiner's theorem).
        n = self.heldout.n_tokens + self.heldout.n_excluded
        return explained(error, deviation - float(self.left_out.square().sum()) / n)


def _reconstruct(
    measured: Sequence[Measured],
    tokens: Tokens,
    means: Mapping[str, Tensor],
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """One pass over `eval` for all of them; by site, `token_lookup_errors` of these means."""
    readers = {each.one.params.keys.site: each.heldout for each in measured}
    errors = {site: np.zeros(int(tokens.document_id.max()) + 1) for site in readers}
    done, total = 0, sum(reader.n_tokens for reader in readers.values())
    for site, counts, x, position in batches_together(readers):
        documents = document_of(position, tokens.document_id)
        for each in measured:
            if each.one.params.keys.site == site:
                each.add(x, position, documents, counts=counts)
        if counts:
            ids = token_ids(tokens, position)
            add_lookup_errors(errors[site], means[site], x, ids, documents)
            done += len(x)
            progress(done, total)
    return errors


def _spliced(
    params: EvaluateSaeParams,
    model: Path,
    coder: Autoencoder,
    heldout: SiteReader,
    tokens: Tokens,
) -> Fidelity:
    """Fidelity over contexts spread over the split."""
    subject = shared_subject(model, coder.b_dec.device)
    n_contexts, context_tokens = tokens.input_ids.shape
    contexts = spread(n_contexts, params.fidelity_tokens or tokens.input_ids.size, context_tokens)
    input_ids = torch.from_numpy(tokens.input_ids[contexts])
    site, documents = params.keys.site, tokens.document_id[contexts]
    kept = torch.ones_like(input_ids, dtype=torch.bool)
    rows = {context: row for row, context in enumerate(contexts)}
    for at in heldout.excluded_positions().tolist():
        context, offset = divmod(at, context_tokens)
        if context in rows:
            kept[rows[context], offset] = False
    mean = heldout.mean()
    return fidelity(subject, coder, site, input_ids, documents, mean, contexts=contexts, kept=kept)


def open_for(
    manifest: Path, site: str, key: str, d_model: int, sae: Path, device: torch.device
) -> SiteReader:
    """Checked activations of a site that an SAE of width `d_model` fits.

    Raises:
        UserError: they are missing, damaged, of another config or of another width.
    """
    reader = open_site(manifest, site, key=key, device=device)
    if reader.d_model != d_model:
        raise UserError(
            f"{reader.folder}: activations of {reader.d_model} dimensions, but the SAE {sae} is "
            f"for {d_model}; evaluate an SAE on a subject and site of its own width"
        )
    reader.check()
    return reader


def fit_means(
    readers: Mapping[str, SiteReader], corpus: Tokens, vocab_size: int
) -> dict[str, tuple[Tensor, int]]:
    """Per site the mean activation of each token id, and of how many tokens: one pass for all."""
    sums = {site: TokenMeans(vocab_size, reader.d_model) for site, reader in readers.items()}
    for site, counts, x, position in batches_together(readers):
        if counts:
            sums[site].add(x, token_ids(corpus, position))
    return {site: (own.means(), int(own.counts.sum())) for site, own in sums.items()}


def add_lookup_errors(
    errors: np.ndarray, means: Tensor, x: Tensor, ids: Tensor, documents: np.ndarray
) -> None:
    """Add to errors float64 [n_documents] what the token's identity alone leaves unexplained.

    sum |x - means[token]|^2 over the tokens of each document, of another split than that of the
    means, float64 [vocab_size, d_model]: activations x [n, d_model], token ids int64 [n] and
    documents int [n].
    """
    error = (x.double() - means[ids]).square().sum(dim=1)
    np.add.at(errors, documents, error.numpy())
