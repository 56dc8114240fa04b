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
from nullsae.activations.outputs import outputs_of
from nullsae.activations.passes import batches_together, open_site
from nullsae.activations.store import SiteReader, document_of
from nullsae.core.devices import device_of
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
from nullsae.sae.token_means import TokenMeans, token_ids
from nullsae.subjects.loading import Subject, shared_subject

# The sites that are read and explained; they differ only for transcoders.
Pair = tuple[str, str]
# Tokens of eval, from its start, used for the covariance.
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
    """Evaluate one SAE; see `evaluate_together`."""
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

    All SAEs are of one variant, and one pass over each split serves all of them. Memory contains
    all SAEs, the sums of each document, and token means at each site. It does not grow with the
    number of tokens, which are memory-mapped like activations.

    Args:
        saes: at any sites.
        model: `recipe.json` of the variant, for cross-entropy; None for `gaussian` and floors,
            which have no model and null fidelity columns.
        train_activations: manifest of the `sae_train` activations, where token means are fitted.
        eval_activations: manifest of the `eval` activations, where everything is measured.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of its `eval` split.
        progress: called with (tokens done, tokens in total), over all sites.

    Raises:
        UserError: a model is missing or does not belong here; activations are missing, damaged,
            from another config or of another width than an SAE's; or an SAE made elsewhere is fed
            with something else than it was trained on.
    """
    torch.set_num_threads(saes[0].params.compute.threads)
    device = device_of(saes[0].params.compute.device)
    tokens, fit_tokens = load_tokens(eval_tokens), load_tokens(train_tokens)
    measured, fitted = [], {}
    for one in saes:
        params, site = one.params, one.params.keys.site
        coder, config = load_sae(one.sae)
        of_sae = (config.d_model, one.sae, device)
        heldout = open_for(eval_activations, site, params.eval_activations_key, *of_sae)
        of_training = open_for(train_activations, site, params.activations_key, *of_sae)
        _check_model(model, heldout)
        coder = coder.to(device)
        # A null's activations are not expected to fit it.
        known = config.dictionary == PRETRAINED and params.keys.variant == "trained"
        if model is not None and known:
            subject = shared_subject(model, device)
            require_fit(params.keys, params.expect, subject, coder, heldout, tokens)
        # For a transcoder, the output site is explained.
        written = coder.writes_at(site)
        measured.append(Measured(one, coder, heldout, outputs_of(heldout, site, written), tokens))
        fitted[measured[-1].pair] = outputs_of(of_training, site, written)
    means = fit_means(fitted, fit_tokens, int(tokens.manifest["vocab_size"]))
    looked_up = _reconstruct(measured, tokens, {p: m for p, (m, _) in means.items()}, progress)
    subject_of = None if model is None else shared_subject(model, device)
    for each in measured:
        _write(each, subject_of, tokens, looked_up[each.pair], means[each.pair][1])


def _check_model(model: Path | None, heldout: SiteReader) -> None:
    """Check that a model is given for captured activations, and none for sampled ones."""
    if (model is None) != ("fitted" in heldout.manifest):
        captured = "captured from a model; give its recipe.json"
        how = captured if model is None else "sampled, from no model; leave it out"
        raise UserError(f"--model: {model or 'not given'}, but {heldout.folder} was {how}")


def _write(
    each: Measured, subject: Subject | None, tokens: Tokens, looked_up: np.ndarray, n_fitted: int
) -> None:
    """Write the tables of one SAE after the pass."""
    params, coder, heldout, sums = each.one.params, each.coder, each.heldout, each.sums
    spliced = None if subject is None else _spliced(each, subject, tokens)
    health = each.moments.health()
    row = {
        "n_latents": coder.n_latents,
        "d_model": heldout.d_model,
        "reason": NO_VARIANCE if each.wanted.is_constant else None,
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
    """The sums over `eval` for one SAE."""

    def __init__(
        self,
        one: OneSae,
        coder: Autoencoder,
        heldout: SiteReader,
        wanted: SiteReader,
        tokens: Tokens,
    ) -> None:
        """Start at zero; `coder` is on the device that computes.

        `heldout` is its input, `wanted` its expected output; they differ only for transcoders.
        """
        self.one, self.coder, self.tokens = one, coder, tokens
        self.heldout, self.wanted, self.mean = heldout, wanted, wanted.mean()
        self.pair = (one.params.keys.site, coder.writes_at(one.params.keys.site))
        n_documents = int(tokens.document_id.max()) + 1
        self.sums, self.rest = (
            ReconstructionSums(mean=self.mean, n_documents=n_documents, n_latents=coder.n_latents)
            for _ in range(2)
        )
        self.moments = Moments(heldout.d_model, device=coder.b_dec.device)
        self.left_out = torch.zeros(wanted.d_model, dtype=torch.float64)

    def add(
        self, x: Tensor, y: Tensor, position: Tensor, documents: np.ndarray, *, counts: bool
    ) -> None:
        """Add tokens that count, or that do not: input and expected output, float32 [n, d]."""
        given = x.to(self.coder.b_dec.device)
        values, indices = self.coder.encode(given, token_ids(self.tokens, position))
        output = self.coder.decode(values, indices, given)
        (self.sums if counts else self.rest).add(y, output, values, indices, documents)
        if counts:
            self.moments.add(x[: HEALTH_TOKENS - self.moments.n])
        else:
            self.left_out += (y.double() - self.mean).sum(dim=0)

    def of_all_tokens(self) -> float | None:
        """Explained variance over all tokens, including excluded ones, about the mean of all."""
        error, deviation = (
            sum(float(s.by_document[name].sum()) for s in (self.sums, self.rest))
            for name in ("squared_error", "squared_deviation")
        )
        # Centred on the mean of all tokens rather than of those that count (Steiner's theorem).
        n = self.heldout.n_tokens + self.heldout.n_excluded
        return explained(error, deviation - float(self.left_out.square().sum()) / n)


def _reconstruct(
    measured: Sequence[Measured],
    tokens: Tokens,
    means: Mapping[Pair, Tensor],
    progress: Callable[[int, int], None],
) -> dict[Pair, np.ndarray]:
    """Make one pass over `eval` for all SAEs; return errors of the token means by pair of sites."""
    pairs = {each.pair: (each.heldout, each.wanted) for each in measured}
    errors = {pair: np.zeros(int(tokens.document_id.max()) + 1) for pair in pairs}
    done, total = 0, sum(reader.n_tokens for reader, _ in pairs.values())
    for pair, counts, x, y, position in batches_together(pairs):
        documents = document_of(position, tokens.document_id)
        for each in measured:
            if each.pair == pair:
                each.add(x, y, position, documents, counts=counts)
        if counts:
            ids = token_ids(tokens, position)
            add_lookup_errors(errors[pair], means[pair], y, ids, documents)
            done += len(x)
            progress(done, total)
    return errors


def _spliced(each: Measured, subject: Subject, tokens: Tokens) -> Fidelity:
    """Measure fidelity on contexts spread over the split."""
    params, coder = each.one.params, each.coder
    n_contexts, context_tokens = tokens.input_ids.shape
    contexts = spread(n_contexts, params.fidelity_tokens or tokens.input_ids.size, context_tokens)
    input_ids = torch.from_numpy(tokens.input_ids[contexts])
    site, documents = params.keys.site, tokens.document_id[contexts]
    kept = torch.ones_like(input_ids, dtype=torch.bool)
    rows = {context: row for row, context in enumerate(contexts)}
    for at in each.heldout.excluded_positions().tolist():
        context, offset = divmod(at, context_tokens)
        if context in rows:
            kept[rows[context], offset] = False
    return fidelity(
        *(subject, coder, site, input_ids, documents, each.mean), contexts=contexts, kept=kept
    )


def open_for(
    manifest: Path, site: str, key: str, d_model: int, sae: Path, device: torch.device
) -> SiteReader:
    """Open activations of a site, and check that an SAE of width `d_model` fits.

    Raises:
        UserError: they are missing, damaged, from another config or of another width.
    """
    reader = open_site(manifest, site, key=key, device=device)
    if reader.d_model != d_model:
        raise UserError(
            f"{reader.folder}: activations of {reader.d_model} dimensions, but the SAE {sae} has "
            f"{d_model}; evaluate an SAE on a subject and site of its own width"
        )
    reader.check()
    return reader


def fit_means(
    readers: Mapping[Pair, SiteReader], corpus: Tokens, vocab_size: int
) -> dict[Pair, tuple[Tensor, int]]:
    """Fit the mean activation of each token id and count tokens, in one pass for all sites."""
    sums = {pair: TokenMeans(vocab_size, reader.d_model) for pair, reader in readers.items()}
    same = {pair: (reader, reader) for pair, reader in readers.items()}
    for pair, counts, x, _, position in batches_together(same):
        if counts:
            sums[pair].add(x, token_ids(corpus, position))
    return {pair: (own.means(), int(own.counts.sum())) for pair, own in sums.items()}


def add_lookup_errors(
    errors: np.ndarray, means: Tensor, x: Tensor, ids: Tensor, documents: np.ndarray
) -> None:
    """Add to errors float64 [n_documents] what the token's identity alone leaves unexplained.

    This is sum |x - means[token]|^2 over the tokens of each document, in another split than the one
    that fitted the means, float64 [vocab_size, d_model]: activations x [n, d_model], token ids
    int64 [n], documents int [n].
    """
    error = (x.double() - means[ids]).square().sum(dim=1)
    np.add.at(errors, documents, error.numpy())
