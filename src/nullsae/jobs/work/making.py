"""Formulas of the rules that make what is measured: corpora, subjects, activations, SAEs.

Constants in seconds are of one core of the reference CPU.
"""

from __future__ import annotations

from dataclasses import replace

from nullsae.config.corpora import BuiltinSource, TrainedTokenizer
from nullsae.config.model_size import BYTES
from nullsae.config.subjects import TrainSource
from nullsae.config.variants import VARIANTS, has_model
from nullsae.jobs.grid import Keys
from nullsae.jobs.work.amounts import (
    SizedStudy,
    Work,
    blocks_to,
    forward,
    sae_bytes,
    together,
    training,
)

# Bytes beside each stored activation: its position, int64.
POSITION_BYTES = 8
# A token in a corpus: its id and its document, int32 each.
TOKEN_BYTES = 8
NEWTON_SCHULZ_STEPS = 5
EVALUATED_LAYERS_TOKENS = 8_192


def prepare_corpus(study: SizedStudy, keys: Keys) -> Work:
    """Read, hash, tokenize, pack, and count pairs of tokens for the bigram's loss."""
    corpus, size = study.config.corpora[keys["corpus"]], study.corpora[keys["corpus"]]
    seconds = size.read_tokens * TOKENIZE_SECONDS
    if isinstance(corpus.tokenizer, TrainedTokenizer):
        seconds += size.read_tokens * TRAIN_TOKENIZER_SECONDS
    if isinstance(corpus.source, BuiltinSource) and corpus.source.name == "stdlib":
        seconds += STDLIB_SECONDS
    n = size.sae_train_tokens + size.eval_tokens
    seconds += min(size.sae_train_tokens, NGRAM_TOKENS) * NGRAM_SECONDS
    return Work(
        tokens=n, host_seconds=seconds, written_bytes=n * TOKEN_BYTES, imports="transformers"
    )


# Per token, measured: docs/plan.md.
TOKENIZE_SECONDS, TRAIN_TOKENIZER_SECONDS, NGRAM_SECONDS = 1.0e-6, 1.0e-6, 0.7e-6
STDLIB_SECONDS, NGRAM_TOKENS = 4.3, 10_000_000


def publishing(study: SizedStudy, keys: Keys) -> Work:
    """Save a variant, load it again, its loss on all of `eval`, its health on some of it."""
    size, context = study.sizes[keys["subject"]], study.context_tokens(keys)
    n_eval = study.corpus(keys).eval_tokens
    health = min(EVALUATED_LAYERS_TOKENS, n_eval)
    d = float(size.d_model)
    spectra = size.n_layers * (2 * 2.0 * d * d * health + 2 * 10.0 * d**3)
    return together(
        forward(size, n_eval, context, head=True),
        forward(size, health, context),
        product_flops=spectra,
        moved_bytes=8.0 * size.weight_bytes,
        written_bytes=size.weight_bytes,
    )


def train_subject(study: SizedStudy, keys: Keys) -> Work:
    """Forward and backward, three forward passes (Kaplan et al. 2020), and Muon's iteration."""
    source, size = study.config.subjects[keys["subject"]].source, study.sizes[keys["subject"]]
    assert isinstance(source, TrainSource)
    context, d = study.context_tokens(keys), float(size.d_model)
    n_tokens = source.steps * source.batch_contexts * context
    once = forward(size, n_tokens, context, head=True)
    # Matrices r x c, r <= c: X X^T, its square, and their product with X, five times a step.
    shapes = ((d, 3 * d), (d, d), (d, 4 * d), (d, 4 * d))
    muon = sum(4 * r * r * c + 2 * r**3 for r, c in shapes) * NEWTON_SCHULZ_STEPS * size.n_layers
    published = publishing(study, keys)
    return together(
        *(once, once, once, published, published),
        product_flops=source.steps * muon,
        host_seconds=source.steps * size.n_layers * BLOCK_STEP_SECONDS,
        written_bytes=2 * published.written_bytes,
        imports="all",
        gpu=True,
    )


# Calls of forward, backward and optimizers in one block, whatever its size.
BLOCK_STEP_SECONDS = 4e-3


def randomize_model(study: SizedStudy, keys: Keys) -> Work:
    """Draw twice, compare, publish: what is drawn is drawn on the CPU, by one thread."""
    size = study.sizes[keys["subject"]]
    published = publishing(study, keys)
    drawn = VARIANTS[keys["variant"]].changes_weights
    gates = size.n_parameters * (GATE_SECONDS if drawn else 0.0)
    return together(
        published,
        host_seconds=gates,
        written_bytes=published.written_bytes,
        imports="transformers",
        gpu=True,
    )


# Two draws, moments, correlations and checksums of an entry.
GATE_SECONDS = 1.2e-7


def capture(study: SizedStudy, keys: Keys) -> Work:
    """One pass as far as the deepest site, and all sites written with their checksums."""
    n, size = study.cached(keys, keys["split"]), study.sizes[keys["subject"]]
    sites = study.config.subjects[keys["subject"]].sites
    row = size.d_model * BYTES[study.config.activations.dtype] + POSITION_BYTES
    deepest = max(blocks_to(site, size) for site in sites)
    return together(
        forward(size, n, study.context_tokens(keys), blocks=deepest),
        moved_bytes=8.0 * n * row * len(sites),
        written_bytes=float(n * row * len(sites)),
        imports="transformers",
        gpu=True,
    )


def capture_portion(study: SizedStudy, keys: Keys) -> Work:
    """An equal part of a capture."""
    return shared(capture(study, keys), study.config.activations.chunks)


def cache_activations(study: SizedStudy, keys: Keys) -> Work:
    """A capture, or the manifest of one that other jobs shared: what is kept counts here."""
    whole = capture(study, keys)
    if study.config.activations.chunks == 1:
        return whole
    return Work(written_bytes=whole.written_bytes, imports="torch")


def shared(whole: Work, n_jobs: int) -> Work:
    """One of n jobs that share one's work, whose result another job keeps."""
    names = ("forward_flops", "forward_elements", "product_flops", "moved_bytes", "host_seconds")
    parts = {name: getattr(whole, name) / n_jobs for name in names}
    return replace(whole, **parts, tokens=whole.tokens // n_jobs, written_bytes=0.0)


def sample_gaussian(study: SizedStudy, keys: Keys) -> Work:
    """Covariance in float64, its root, and a product for each vector; noise is drawn on the CPU."""
    n, d = study.cached(keys, keys["split"]), float(study.sizes[keys["subject"]].d_model)
    fitted = study.cached(keys, "sae_train")
    sites = len(study.config.subjects[keys["subject"]].sites)
    row = d * BYTES[study.config.activations.dtype] + POSITION_BYTES
    return Work(
        tokens=n,
        product_flops=sites * (4.0 * d * d * fitted + 20.0 * d**3 + 2.0 * d * d * n),
        moved_bytes=8.0 * n * row * sites,
        host_seconds=sites * n * d * NORMAL_SECONDS,
        written_bytes=n * row * sites,
        imports="torch",
        gpu=True,
    )


NORMAL_SECONDS = 6e-9


def train_saes(study: SizedStudy, cells: list[Keys]) -> Work:
    """The SAEs of one job, on cached or live activations."""
    keys, parts = cells[0], []
    size, settings = study.sizes[keys["subject"]], study.config.activations
    d, n = size.d_model, study.trained_tokens(keys)
    cached = study.cached(keys, "sae_train")
    written = held = 0.0
    stepwise = False
    for cell in cells:
        recipe = study.recipe(cell)
        m = study.width(cell, recipe)
        written += sae_bytes(d, m) * (1 + len(recipe.checkpoints))
        fetched = recipe.pretrained is not None and cell["variant"] == "trained"
        if fetched or not recipe.origin.trained:
            fitted = recipe.origin.fit_flops(d, cached)
            parts.append(Work(product_flops=fitted, moved_bytes=cached * 16.0 * d))
            continue
        stepwise = True
        held += 3 * sae_bytes(d, m)
        parts.append(training(recipe, d, m, n))
        parts.append(Work(tokens=n * recipe.epochs, moved_bytes=20.0 * n * d * recipe.epochs))
    if settings.mode == "stream" and stepwise:
        sites = list(dict.fromkeys(cell["site"] for cell in cells))
        epochs = max(study.recipe(cell).epochs for cell in cells)
        if not has_model(keys["variant"]):
            drawn = float(n * epochs * len(sites))
            live = Work(product_flops=2.0 * d * d * drawn, host_seconds=drawn * d * NORMAL_SECONDS)
        else:
            deepest = max(blocks_to(site, size) for site in sites)
            live = forward(size, n * epochs, study.context_tokens(keys), blocks=deepest)
        parts.append(Work(**{**live.__dict__, "tokens": 0}))
    imports = "all" if any(part.forward_flops for part in parts) else "optimizer"
    imports = imports if stepwise else "torch"
    return together(*parts, written_bytes=written, work_bytes=held, imports=imports, gpu=True)


def train_sae(study: SizedStudy, keys: Keys) -> Work:
    """One SAE."""
    return train_saes(study, [keys])


def take_checkpoint(study: SizedStudy, keys: Keys) -> Work:
    """A copy."""
    size = study.sizes[keys["subject"]]
    written = sae_bytes(size.d_model, study.width(keys, study.recipe(keys)))
    return Work(moved_bytes=4 * written, written_bytes=written, imports="torch")
