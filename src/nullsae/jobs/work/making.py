"""Formulas of the rules that make what is measured: corpora, subjects, activations, SAEs.

Seconds are for one core of the reference CPU; d is the width of a subject, m the latents of an SAE.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from nullsae.config.corpora import BuiltinSource, HubSource, TrainedTokenizer
from nullsae.config.model_size import BYTES, Size
from nullsae.config.saes import Sae
from nullsae.config.sites import site_kind, site_layer
from nullsae.config.subjects import TrainSource
from nullsae.config.variants import VARIANTS, has_model
from nullsae.jobs.grid import Keys, captured_sites
from nullsae.jobs.work.amounts import SizedStudy, Work, encoding, forward, sae_bytes, together

# The largest freed block that glibc keeps for reuse.
KEPT_BLOCK = 2.0**25
# Bytes next to each stored activation: its position, int64, and its norm, float32.
ROW_BYTES = 8 + 4
# A token in a corpus: its id and its document, int32 each.
TOKEN_BYTES = 8
# Bytes of UTF-8 text per token on disk; the most of it in memory, twice, while a corpus is sorted;
# and the most tokens, of 20 bytes, while it is packed.
TEXT_BYTES, SPOOLED_BYTES, PACKED_TOKENS, PACKED_BYTES = 4.0, 2**25, 2**20, 20.0
NEWTON_SCHULZ_STEPS = 5
EVALUATED_LAYERS_TOKENS = 8_192
# Seconds per token, measured: docs/plan.md.
TOKENIZE_SECONDS, TRAIN_TOKENIZER_SECONDS, NGRAM_SECONDS = 1.0e-6, 1.0e-6, 0.7e-6
STDLIB_SECONDS, NGRAM_TOKENS = 4.3, 10_000_000
# Five passes over the rows of the hits (docs/performance.md), and Adam with the norms of rows.
HIT_PASSES, ADAM_BYTES = 5, 40
# Overhead of calls per optimizer step.
STEP_SECONDS = 1.5e-3
# Overhead of calls per block and step of a subject's training.
BLOCK_STEP_SECONDS = 4e-3
# Per entry of a weight: two draws, moments, correlations and checksums.
GATE_SECONDS = 1.2e-7
# Per number of a Gaussian sample: its draw in float64, moments and gates.
NORMAL_SECONDS = 1.1e-7
# Per entry of a tensor that gates compare: two copies in float64, and a third while it is drawn.
COMPARED_BYTES = 24.0
# The loss of a variant is computed over this many contexts, and bytes of logits, at once.
LOSS_CONTEXTS, LOSS_LOGIT_BYTES = 32, 2**28
# Activations of a chunk: one captured, one written, both permuted or pinned.
CHUNK_COPIES = 4
# Tokens that an SAE's initialization is fitted to; 50 steps of the geometric median per number.
SAMPLE_TOKENS, MEDIAN_BYTES = 32_768, 50 * 24.0
# Per latent, while gates compare products of its row with 256 others: five numbers in float64.
GATED_BYTES = 5 * 8.0 * 256


def prepare_corpus(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to read, hash, tokenize, pack, and count token pairs for the bigram loss.

    Memory: buffers up to a fixed size, then pairs, as int64 three times. On disk while it runs: the
    texts (of a stream, only those that train a tokenizer), and 4 bytes per packed token.
    """
    corpus, size = study.config.corpora[keys["corpus"]], study.corpora[keys["corpus"]]
    source, counted = corpus.source, min(size.sae_train_tokens, NGRAM_TOKENS)
    seconds = size.read_tokens * TOKENIZE_SECONDS
    if trained := isinstance(corpus.tokenizer, TrainedTokenizer):
        seconds += size.read_tokens * TRAIN_TOKENIZER_SECONDS
    if isinstance(source, BuiltinSource) and source.name == "stdlib":
        seconds += STDLIB_SECONDS
    n = size.sae_train_tokens + size.eval_tokens
    streamed = isinstance(source, HubSource) and source.streaming
    spooled = 0 if streamed and not trained else size.read_tokens
    packing = 2.0 * min(TEXT_BYTES * size.read_tokens, SPOOLED_BYTES)
    packing += PACKED_BYTES * min(n, PACKED_TOKENS)
    return Work(
        tokens=n,
        host_seconds=seconds + counted * NGRAM_SECONDS,
        written_bytes=n * TOKEN_BYTES,
        work_bytes=TEXT_BYTES * spooled + 4.0 * n,
        held_bytes=max(packing, 24.0 * counted),
        # Transformers' tokenizers, which load PyTorch and no model.
        imports="torch",
    )


def publishing(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to save and reload a variant, and run its gates on `eval`."""
    size, context = study.sizes[keys["subject"]], study.context_tokens(keys)
    n_eval = study.corpus(keys).eval_tokens
    health = min(EVALUATED_LAYERS_TOKENS, n_eval)
    d = float(size.d_model)
    return together(
        forward(size, n_eval, context, head=True),
        forward(size, health, context),
        product_flops=size.n_layers * (2 * 2.0 * d * d * health + 2 * 10.0 * d**3),
        moved_bytes=8.0 * size.weight_bytes,
        written_bytes=size.weight_bytes,
    )


def train_subject(study: SizedStudy, keys: Keys) -> Work:
    """Return the work of a training: steps of three forward passes (Kaplan et al. 2020), and Muon.

    Memory: five times the weights (gradients, two moments, the initial ones), and a batch: 68 d +
    10 T heads bytes per token and block in float32, T the tokens of a context: twice table 2 of
    Korthikanti et al. 2022 (arXiv 2205.05198), which is for half precision.
    """
    return _train(study, keys, published=2)


def retrain_subject(study: SizedStudy, keys: Keys) -> Work:
    """Return the work of another training, without initial weights; or of a model made elsewhere.

    The latter holds itself, and the subject that it is compared with, in memory.
    """
    if isinstance(study.config.subjects[keys["subject"]].source, TrainSource):
        return _train(study, keys, published=1)
    made = randomize_model(study, keys)
    return replace(made, held_bytes=made.held_bytes + study.sizes[keys["subject"]].weight_bytes)


def _train(study: SizedStudy, keys: Keys, *, published: int) -> Work:
    source, size = study.config.subjects[keys["subject"]].source, study.sizes[keys["subject"]]
    assert isinstance(source, TrainSource)
    context, d = study.context_tokens(keys), float(size.d_model)
    once = forward(size, source.steps * source.batch_contexts * context, context, head=True)
    # Matrices r x c, r <= c: X X^T, its square, and their product with X, five times per step.
    shapes = ((d, 3 * d), (d, d), (d, 4 * d), (d, 4 * d))
    muon = sum(4 * r * r * c + 2 * r**3 for r, c in shapes) * NEWTON_SCHULZ_STEPS * size.n_layers
    each = publishing(study, keys)
    token = size.n_layers * (68.0 * d + 10.0 * context * source.n_heads)
    token += size.logit_bytes
    return together(
        *(once, once, once, *(each,) * published),
        product_flops=source.steps * muon,
        host_seconds=source.steps * size.n_layers * BLOCK_STEP_SECONDS,
        written_bytes=published * each.written_bytes,
        held_bytes=(held := 20.0 * size.n_parameters + source.batch_contexts * context * token),
        gpu_bytes=held,
        imports="all",
        gpu=True,
    )


def randomize_model(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to draw twice, compare and publish; draws are by one thread on the CPU.

    Memory: the drawn weights, the mapped original, and 24 bytes per entry of the largest tensor
    while gates compare it in float64; or the drawn weights, those reread, and logits. The
    initializer draws whole models.
    """
    size, variant = study.sizes[keys["subject"]], VARIANTS[keys["variant"]]
    published = publishing(study, keys)
    logits = min(LOSS_LOGIT_BYTES, LOSS_CONTEXTS * study.context_tokens(keys) * size.vocab_size * 4)
    batch = study.pass_bytes(keys, LOSS_CONTEXTS, head=False) - size.weight_bytes
    compared = COMPARED_BYTES * size.largest_tensor * (not variant.fixed)
    # An architecture's own initializer draws all weights at once, in float32.
    models = 2.0 + 8.0 / BYTES[size.dtype] * (variant.name == "fresh_init")
    return together(
        published,
        host_seconds=size.n_parameters * (GATE_SECONDS if variant.changes_weights else 0.0),
        written_bytes=published.written_bytes if variant.has_own_weights() else 0.0,
        held_bytes=models * size.weight_bytes + max(compared, batch + 3.0 * logits),
        # One model at a time: the changed one is freed before it is reread.
        gpu_bytes=study.pass_bytes(keys, LOSS_CONTEXTS, head=False) + 4.0 * LOSS_LOGIT_BYTES,
        imports="transformers",
        gpu=True,
    )


def blocks_to(site: str, size: Size) -> int:
    """Return how many blocks a pass runs to reach a site, where it stops."""
    layer = site_layer(site)
    return max(0, min(layer + (site_kind(site) != "resid_pre"), size.n_layers))


def kept_row_bytes(study: SizedStudy, keys: Keys, site: str) -> float:
    """Return the bytes on disk of a captured token at a site."""
    settings = study.config.activations
    number = BYTES[settings.dtype] * study.sizes[keys["subject"]].width(site)
    return ROW_BYTES + (number if settings.kept else 0.0)


def anew(study: SizedStudy, keys: Keys, sites: Iterable[str], n_tokens: float) -> list[Work]:
    """Return the work to recompute activations that are not kept: one pass, or samples.

    Samples are fitted to recomputed activations, too.
    """
    size, sites = study.sizes[keys["subject"]], list(sites)
    if study.config.activations.kept or not n_tokens:
        return []
    deepest, n, flops, seconds = max(blocks_to(site, size) for site in sites), n_tokens, 0.0, 0.0
    if not has_model(keys["variant"]):
        n = study.cached(keys, "sae_train")
        widths = [float(size.width(site)) for site in sites]
        flops = sum(2 * d * d * n_tokens + 4 * d * d * n + 20 * d**3 for d in widths)
        seconds = n_tokens * sum(widths) * NORMAL_SECONDS
    passed = forward(size, n, study.context_tokens(keys), blocks=deepest)
    return [replace(passed, tokens=0, product_flops=flops, host_seconds=seconds)]


def anew_bytes(study: SizedStudy, keys: Keys, sites: Iterable[str]) -> float:
    """Return the memory to recompute activations: a subject, a batch, a shard of all sites."""
    if study.config.activations.kept:
        return 0.0
    settings, size = study.config.activations, study.sizes[keys["subject"]]
    numbers = 2.0 * study.chunk(keys) * sum(size.width(site) for site in sites)
    passes = study.pass_bytes(keys, settings.batch_contexts, head=False)
    return passes + numbers * BYTES[settings.dtype]


def capture(study: SizedStudy, keys: Keys) -> Work:
    """Return the work of one pass up to the deepest site, and of writing all sites with checksums.

    Memory: a subject, a batch, and two chunks of all sites, each twice (pinned, or permuted).
    """
    n, size = study.cached(keys, keys["split"]), study.sizes[keys["subject"]]
    settings, sites = study.config.activations, captured_sites(study.config, keys["subject"])
    rows = sum(size.width(site) * BYTES[settings.dtype] + ROW_BYTES for site in sites)
    deepest = max(blocks_to(site, size) for site in sites)
    chunks = CHUNK_COPIES * study.chunk(keys) * rows
    return together(
        forward(size, n, study.context_tokens(keys), blocks=deepest),
        moved_bytes=8.0 * n * rows,
        written_bytes=n * sum(kept_row_bytes(study, keys, site) for site in sites),
        held_bytes=(passes := study.pass_bytes(keys, settings.batch_contexts, head=False)) + chunks,
        gpu_bytes=passes,
        imports="transformers",
        gpu=True,
    )


def capture_portion(study: SizedStudy, keys: Keys) -> Work:
    """Return the work of an equal part of a capture."""
    return capture(study, keys).shared(study.config.activations.chunks)


def cache_activations(study: SizedStudy, keys: Keys) -> Work:
    """Return the work of a capture, or of joining portions, which counts the disk of all."""
    whole = capture(study, keys)
    if study.config.activations.chunks == 1:
        return whole
    return Work(written_bytes=whole.written_bytes, imports="torch")


def sample_gaussian(study: SizedStudy, keys: Keys) -> Work:
    """Return the work of a covariance in float64, its root, and a product for each vector.

    Noise is drawn on the CPU. Memory: a chunk, a covariance and its root, means of each token.
    """
    size = study.sizes[keys["subject"]]
    n, fitted = study.cached(keys, keys["split"]), study.cached(keys, "sae_train")
    names = captured_sites(study.config, keys["subject"])
    widths = [float(size.width(site)) for site in names]
    number, widest = BYTES[study.config.activations.dtype], max(widths)
    rows = sum(d * number + ROW_BYTES for d in widths)
    tokens = 128.0 * size.vocab_size
    # Sites come one after the other.
    fits = [anew(study, {**keys, "variant": "trained"}, [site], fitted) for site in names]
    held = CHUNK_COPIES * study.chunk(keys) * widest * number + 80.0 * widest**2 + tokens
    return together(
        *chain.from_iterable(fits),
        tokens=n,
        product_flops=sum(4 * d * d * fitted + 20 * d**3 + 2 * d * d * n for d in widths),
        moved_bytes=8.0 * n * rows,
        host_seconds=n * sum(widths) * NORMAL_SECONDS,
        written_bytes=n * sum(kept_row_bytes(study, keys, site) for site in names),
        held_bytes=held + anew_bytes(study, keys, names[:1]),
        gpu_bytes=80.0 * widest**2 + tokens + anew_bytes(study, keys, names[:1]),
        imports="torch" if study.config.activations.kept else "transformers",
        gpu=True,
    )


def training(recipe: Sae, d: int, m: int, n_tokens: float) -> Work:
    """Return the work of an SAE's gradient steps, and of its evaluations during training.

    The counted limit of docs/performance.md: the encoder's product, one read of its result, five
    passes over the rows of the hits; per step one pass of Adam over encoder and decoder.
    """
    steps = n_tokens // recipe.batch_tokens * recipe.epochs
    seen = float(steps * recipe.batch_tokens)
    k, factor = recipe.kept, recipe.step_cost
    per_token = 8.0 * m * factor + HIT_PASSES * 4.0 * k * d
    weights = 2.0 * m * d
    step = Work(
        product_flops=seen * 2.0 * d * m * factor,
        moved_bytes=seen * per_token + steps * weights * ADAM_BYTES,
        host_seconds=steps * STEP_SECONDS,
    )
    measured = (steps // recipe.evaluate_every_steps + 1) * recipe.heldout_tokens
    sample = min(SAMPLE_TOKENS, n_tokens)
    start = Work(moved_bytes=MEDIAN_BYTES * sample * d)
    return together(step, start, encoding(recipe, d, m, sample + measured))


def train_saes(study: SizedStudy, cells: list[Keys]) -> Work:
    """Return the work to train one job's SAEs, on cached or live activations.

    CPU memory: a step of all SAEs or, between steps, their weights, gradients and moments, and a
    copy of one, scaled to be written, or held-out data in float64 three times. On a GPU these are
    in its own memory, except the copy. In addition: the first data, blocks of it, and two matrices
    that the C library keeps. All latents count as dead, since the data decide how many are: a job
    without dead ones takes a quarter less, but being killed costs more.
    """
    keys, parts = cells[0], []
    size, settings = study.sizes[keys["subject"]], study.config.activations
    n, cached = study.trained_tokens(keys), study.cached(keys, "sae_train")
    written = kept = on_device = states = copy = fitting = block = 0.0
    for cell in cells:
        recipe, d, m = study.sae(cell)
        one = sae_bytes(d, m)
        written += sae_bytes(d, m, recipe.stored_dtype) * (1 + len(recipe.checkpoints))
        elsewhere = recipe.made_elsewhere(cell["variant"])
        if not recipe.origin.trained or recipe.pretrained is not None:
            fitting = max(fitting, 3 * one + 32.0 * d * d)
        else:
            kind = "cpu" if study.on_cpu else "cuda"
            bytes_of = recipe.training().step_bytes
            on_device += bytes_of(recipe, d_model=d, n_latents=m, k=recipe.kept, device=kind)
            measured = 24.0 * d * min(recipe.heldout_tokens, study.cached(cell, "eval"))
            states, copy = states + 4 * one, max(copy, one, one / 2 + measured)
            block = max(block, one / 2)
        if elsewhere or not recipe.origin.trained:
            fitted = recipe.origin.fit_flops(d, cached)
            parts.append(Work(product_flops=fitted, moved_bytes=cached * 16.0 * d))
            parts += anew(study, keys, [cell["site"]], 0 if elsewhere else cached)
            continue
        kept += 3 * one
        parts.append(training(recipe, d, m, n))
        parts.append(Work(tokens=n * recipe.epochs, moved_bytes=20.0 * n * d * recipe.epochs))
    sites = list(dict.fromkeys(cell["site"] for cell in cells))
    widths = [float(size.width(site)) for site in sites]
    recipes, stream = [study.recipe(cell) for cell in cells], settings.streams
    stepwise = kept > 0
    if stream and stepwise:
        epochs = max(recipe.epochs for recipe in recipes)
        if not has_model(keys["variant"]):
            drawn = float(n * epochs)
            live = Work(
                product_flops=2.0 * drawn * sum(d * d for d in widths),
                host_seconds=drawn * sum(widths) * NORMAL_SECONDS,
            )
        else:
            deepest = max(blocks_to(site, size) for site in sites)
            live = forward(size, n * epochs, study.context_tokens(keys), blocks=deepest)
        parts.append(replace(live, tokens=0))
    sampled = min(SAMPLE_TOKENS, study.chunk(keys))
    heldout = min(max(r.heldout_tokens for r in recipes), study.cached(keys, "eval"))
    start = sum(widths) * 4.0 * (sampled + heldout)
    held = max(on_device, states + copy, fitting) if study.on_cpu else max(copy, fitting)
    held += start + 2.0 * min(KEPT_BLOCK, block)
    held += study.block_bytes(keys, widths)
    passes = 0.0
    if (stream and has_model(keys["variant"])) or not settings.kept:
        passes = study.pass_bytes(keys, settings.batch_contexts, head=False)
    live_pass = any(part.forward_flops for part in parts)
    return together(
        *parts,
        written_bytes=written,
        work_bytes=kept,
        held_bytes=held + passes,
        gpu_bytes=max(on_device, fitting) + start + passes,
        imports="torch" if not stepwise else "all" if live_pass else "optimizer",
        gpu=True,
    )


def train_sae(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to train one SAE."""
    return train_saes(study, [keys])


def derive_sae(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to make an SAE from another: both encode the sample and held-out data.

    Memory: the samples, what `derive` sorts, and the largest of: both SAEs, with float64 copies to
    rotate; products of some rows with all, in gates; the sample in float64. Freed blocks are kept.
    """
    recipe, d, m = study.sae(keys)
    made = study.config.saes[keys["sae"]]
    n = min(made.origin.sampled, study.cached(keys, "sae_train"))
    heldout = min(made.heldout_tokens, study.cached(keys, "eval"))
    one, samples = sae_bytes(d, m), 4.0 * d * (n + heldout)
    held = max(6 * one + 24.0 * d * d, 4 * one + GATED_BYTES * m, 8.0 * d * n)
    return together(
        encoding(recipe, d, m, 2 * n + 3 * heldout),
        product_flops=made.origin.derive_flops(d, m, n),
        written_bytes=one,
        held_bytes=samples + held + made.origin.derive_bytes(m, n) + 1.5 * KEPT_BLOCK,
        imports="torch",
        gpu=True,
    )


def take_checkpoint(study: SizedStudy, keys: Keys) -> Work:
    """Return the work of a copy: files are copied, and one is read once."""
    recipe, d, m = study.sae(keys)
    written, held = sae_bytes(d, m, recipe.stored_dtype), sae_bytes(d, m)
    return Work(moved_bytes=4 * held, written_bytes=written, held_bytes=held, imports="torch")
