"""Evaluation of one SAE on the `eval` split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nullsae import tables
from nullsae.activations.outputs import both, outputs_of
from nullsae.activations.store import SiteReader, document_of
from nullsae.core.errors import UserError
from nullsae.core.moments import SHARES, Moments
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.metrics import EvaluateSaeParams
from nullsae.metrics.fidelity import COLUMNS, DOCUMENT_COLUMNS, Fidelity, fidelity, spread
from nullsae.metrics.gate import require_fit
from nullsae.metrics.geometry import decoder_geometry
from nullsae.metrics.reconstruction import ReconstructionSums, explained
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import PRETRAINED, load_sae
from nullsae.sae.token_means import fit_token_means, token_ids
from nullsae.subjects.loading import Subject, load_subject, pick_device

# Tokens of eval, from its start, that the covariance is taken over.
HEALTH_TOKENS = 65_536
NO_VARIANCE = "the site has no variance: all tokens have the same activation"


def evaluate_sae(
    params: EvaluateSaeParams,
    *,
    sae: Path,
    model: Path | None,
    train_activations: Path,
    eval_activations: Path,
    train_tokens: Path,
    eval_tokens: Path,
    reconstruction: Path,
    documents: Path,
    geometry: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the tables `reconstruction` and `geometry` (one row each) and `documents` of one SAE.

    Memory grows with documents, not tokens: tokens and activations are mapped from their files.

    Args:
        params: the rule's slice of the config.
        sae: `cfg.json` of the SAE.
        model: `recipe.json` of the variant, for cross-entropy; None for `gaussian` and floors,
            which have none: their columns of fidelity are null.
        train_activations: manifest of the `sae_train` activations: token means are fitted there.
        eval_activations: manifest of the `eval` activations: everything is measured there.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of its `eval` split.
        reconstruction: output table.
        documents: output table.
        geometry: output table.
        progress: called with (tokens done, tokens in all).

    Raises:
        UserError: a model that is missing or does not belong here, activations that are missing,
            damaged, of another config or of another width than the SAE's, or an SAE made elsewhere
            that is fed with something else than it was trained on.
    """
    torch.set_num_threads(params.compute.threads)
    site, (coder, config) = params.keys.site, load_sae(sae)
    coder = coder.to(pick_device(params.compute.device))
    heldout = open_site(eval_activations, site, params.eval_activations_key, config.d_model, sae)
    fitted = open_site(train_activations, site, params.activations_key, config.d_model, sae)
    _check_model(model, heldout)
    tokens, fit_tokens = load_tokens(eval_tokens), load_tokens(train_tokens)
    subject = None if model is None else load_subject(model, coder.b_dec.device)
    # On a null's activations it is meant to be out of place.
    if subject is not None and config.dictionary == PRETRAINED and params.keys.variant == "trained":
        require_fit(params.keys, params.expect, subject, coder, heldout, tokens)
    # Of a transcoder, what is explained is its output site.
    wanted, of_fitted = (outputs_of(r, site, coder.writes_at(site)) for r in (heldout, fitted))
    sums, health = _reconstruct(coder, heldout, wanted, tokens, progress)
    looked_up, n_fitted = _looked_up(of_fitted, fit_tokens, wanted, tokens)
    spliced = None if subject is None else _spliced(params, subject, coder, heldout, wanted, tokens)
    row = {
        "n_latents": coder.n_latents,
        "d_model": config.d_model,
        "reason": NO_VARIANCE if wanted.is_constant else None,
        **sums.totals(),
        "explained_variance_all_tokens": _of_all_tokens(sums, coder, heldout, wanted, tokens),
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
    tables.write_table(reconstruction, [row], tables.cell_schema("reconstruction"))
    tables.write_table(documents, of_documents, tables.cell_schema("documents"))
    tables.write_table(geometry, [shape], tables.cell_schema("geometry"))


def _check_model(model: Path | None, heldout: SiteReader) -> None:
    """What was sampled names the activations that it is fitted to, and has no model."""
    if (model is None) != ("fitted" in heldout.manifest):
        captured = "captured from a model; give its recipe.json"
        how = captured if model is None else "sampled, from no model; leave it out"
        raise UserError(f"--model: {model or 'not given'}, but {heldout.folder} was {how}")


def _reconstruct(
    coder: Autoencoder,
    heldout: SiteReader,
    wanted: SiteReader,
    tokens: Tokens,
    progress: Callable[[int, int], None],
) -> tuple[ReconstructionSums, Mapping[str, float | None]]:
    """Sums over all tokens, and the health of the activations that are read."""
    n_documents = int(tokens.document_id.max()) + 1
    sums = ReconstructionSums(
        mean=wanted.mean(), n_documents=n_documents, n_latents=coder.n_latents
    )
    device, done = coder.b_dec.device, 0
    moments = Moments(heldout.d_model, device=device)
    for x, y, position in both(heldout, wanted):
        given = x.to(device)
        values, indices = coder.encode(given, token_ids(tokens, position))
        output = coder.decode(values, indices, given)
        sums.add(y, output, values, indices, document_of(position, tokens.document_id))
        moments.add(x[: HEALTH_TOKENS - moments.n])
        done += len(x)
        progress(done, heldout.n_tokens)
    return sums, moments.health()


def _spliced(
    params: EvaluateSaeParams,
    subject: Subject,
    coder: Autoencoder,
    heldout: SiteReader,
    wanted: SiteReader,
    tokens: Tokens,
) -> Fidelity:
    """Fidelity over contexts spread over the split."""
    n_contexts, context_tokens = tokens.input_ids.shape
    contexts = spread(n_contexts, params.fidelity_tokens or tokens.input_ids.size, context_tokens)
    input_ids = torch.from_numpy(tokens.input_ids[contexts])
    site, documents = params.keys.site, tokens.document_id[contexts]
    kept = torch.ones_like(input_ids, dtype=torch.bool)
    if heldout.n_excluded:
        rows = {context: row for row, context in enumerate(contexts)}
        for _, position in heldout.batches(excluded=True):
            for at in position.tolist():
                context, offset = divmod(at, context_tokens)
                if context in rows:
                    kept[rows[context], offset] = False
    mean = wanted.mean()
    return fidelity(subject, coder, site, input_ids, documents, mean, contexts=contexts, kept=kept)


def _of_all_tokens(
    sums: ReconstructionSums,
    coder: Autoencoder,
    heldout: SiteReader,
    wanted: SiteReader,
    tokens: Tokens,
) -> float | None:
    """Explained variance over all tokens, excluded ones too, about the mean of all."""
    rest = ReconstructionSums(
        mean=sums.mean, n_documents=sums.n_documents, n_latents=coder.n_latents
    )
    total = torch.zeros(wanted.d_model, dtype=torch.float64)
    for x, y, position in both(heldout, wanted, excluded=True):
        ids = token_ids(tokens, position)
        given = x.to(coder.b_dec.device)
        values, indices = coder.encode(given, ids)
        of_documents = document_of(position, tokens.document_id)
        rest.add(y, coder.decode(values, indices, given), values, indices, of_documents)
        total += (y.double() - sums.mean).sum(dim=0)
    error, deviation = (
        sum(float(s.by_document[name].sum()) for s in (sums, rest))
        for name in ("squared_error", "squared_deviation")
    )
    # About the mean of all instead of that of the tokens that count (Steiner's theorem).
    n = heldout.n_tokens + heldout.n_excluded
    return explained(error, deviation - float(total.square().sum()) / n)


def open_site(manifest: Path, site: str, key: str, d_model: int, sae: Path) -> SiteReader:
    """Checked activations of a site that an SAE of width `d_model` fits.

    Raises:
        UserError: they are missing, damaged, of another config or of another width.
    """
    reader = SiteReader.open(manifest, site, key=key)
    if reader.d_model != d_model:
        raise UserError(
            f"{reader.folder}: activations of {reader.d_model} dimensions, but the SAE {sae} is "
            f"for {d_model}; evaluate an SAE on a subject and site of its own width"
        )
    reader.check()
    return reader


def _looked_up(
    fitted: SiteReader, fit_tokens: Tokens, heldout: SiteReader, tokens: Tokens
) -> tuple[np.ndarray, int]:
    """`token_lookup_errors` of the means of one split on another one, and tokens of the first."""
    pairs = ((x, token_ids(fit_tokens, position)) for x, position in fitted.batches())
    means, counts = fit_token_means(pairs, int(tokens.manifest["vocab_size"]), fitted.d_model)
    batches = (
        (x, token_ids(tokens, position), document_of(position, tokens.document_id))
        for x, position in heldout.batches()
    )
    errors = token_lookup_errors(means, batches, int(tokens.document_id.max()) + 1)
    return errors, int(counts.sum())


def token_lookup_errors(
    means: Tensor, batches: Iterable[tuple[Tensor, Tensor, np.ndarray]], n_documents: int
) -> np.ndarray:
    """What the token's identity alone leaves unexplained, without an SAE: float64 [n_documents].

    sum |x - means[token]|^2 over the tokens of each document, of another split than that of the
    means, float64 [vocab_size, d_model]. Batches are activations [n, d_model], token ids int64 [n]
    and documents int [n].
    """
    errors = np.zeros(n_documents)
    for x, ids, documents in batches:
        error = (x.double() - means[ids]).square().sum(dim=1)
        np.add.at(errors, documents, error.numpy())
    return errors
