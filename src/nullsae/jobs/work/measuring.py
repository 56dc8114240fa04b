"""Formulas of the rules that measure: SAEs, latents, explanations, tables, figures.

Constants in seconds are for one core of the reference CPU. d is the width of a subject, m the
number of latents of an SAE.
"""

from __future__ import annotations

from nullsae.config.variants import has_model, is_null
from nullsae.jobs.autointerp import is_shared_out
from nullsae.jobs.grid import Keys, cross_cells, matched_cells, sae_cells
from nullsae.jobs.work.amounts import (
    BATCH_TOKENS,
    SizedStudy,
    Work,
    coding_bytes,
    coding_gpu_bytes,
    encoding,
    forward,
    in_turn,
    sae_bytes,
    sharing_passes,
    together,
)
from nullsae.jobs.work.latents import window_bytes
from nullsae.jobs.work.making import LOSS_LOGIT_BYTES, anew, anew_bytes

# Freed tensors that the C library keeps.
FREED_BYTES = 3e7
COVARIANCE_TOKENS, FIDELITY_CONTEXTS = 65_536, 16
# Per entry of the cost matrix; and to import SciPy's solver.
ASSIGNMENT_SECONDS, SCIPY_SECONDS, SCIPY_BYTES = 8e-8, 0.65, 5e7
# SHOWN_COPIES: memory of an SAE's windows as Python objects, relative to a table.
EXPLANATION_SECONDS, JUDGED_SECONDS, SHOWN_COPIES = 4e-3, 4.5e-5, 8.0
METRICS_PER_SAE, METRICS_PER_SCORE = 16, 8
ESTIMATE_SECONDS, RESAMPLE_SECONDS = 3e-3, 0.8e-6
# Per latent that one metric ranks against one null.
METRICS_RANKED, RANKED_SECONDS, RANKED_BYTES, RANKED_FILE_BYTES = 5, 1.5e-6, 170.0, 15.0
FIGURES, FIGURE_SECONDS = 30, 0.25
# Memory of statistics, and of drawing figures, for any study.
STATISTICS_BYTES, DRAWING_BYTES = 2.3e8, 1.65e8
# Per dimension while a batch is summed in float64: inputs and outputs, twice each, and three terms.
SUMMED_BYTES = 56.0 * BATCH_TOKENS


def evaluate_saes(study: SizedStudy, cells: list[Keys]) -> Work:
    """Return the work for one job's SAEs, in sequence or, if they share passes, together.

    The latter hold all SAEs, means of each token at each site, and a shard of all sites in memory.
    """
    each = in_turn([evaluate_sae(study, cell) for cell in cells])
    if study.config.activations.kept:
        return each
    passes, held, on_gpu = [], 0.0, 0.0
    for group in sharing_passes(study, cells):
        keys, sites = group[0], dict.fromkeys(cell["site"] for cell in group)
        n_tokens = study.cached(keys, "eval") + study.cached(keys, "sae_train")
        passes += anew(study, keys, sites, n_tokens)
        size = study.sizes[keys["subject"]]
        own = sum(1.5 * sae_bytes(d, m) for _, d, m in map(study.sae, group))
        means = 16.0 * len(sites) * size.vocab_size * size.d_model
        live = anew_bytes(study, keys, sites)
        held, on_gpu = max(held, own + means + live), max(on_gpu, own + live)
    known = {"held_bytes": each.held_bytes + held, "gpu_bytes": each.gpu_bytes + on_gpu}
    return in_turn([each, together(*passes, **known, gpu=True)])


def evaluate_sae(study: SizedStudy, keys: Keys) -> Work:
    """Return the work for reconstruction, token means, decoder geometry, and fidelity in 4 passes.

    Memory: the SAE and means of each token; a batch in float64; a block of cosines (16 m d for
    random directions, which are normalized in float64, 16 MiB, 24 d^2 for a spectrum), then a
    subject with clean and other logits.
    """
    size, (recipe, d, m) = study.sizes[keys["subject"]], study.sae(keys)
    n, cached = study.cached(keys, "eval"), study.cached(keys, "sae_train")
    parts, passes = [encoding(recipe, d, m, n)], 0.0
    with_model = has_model(keys["variant"])
    if with_model:
        fidelity = min(study.config.evaluation.fidelity_tokens, n)
        parts += 4 * [forward(size, fidelity, study.context_tokens(keys), head=True)]
        parts.append(encoding(recipe, d, m, fidelity))
        passes = study.pass_bytes(keys, FIDELITY_CONTEXTS, head=True)
    geometry = 16.0 * m * d + 2**24 + 24.0 * d * d
    held = FREED_BYTES + max(geometry, passes, SUMMED_BYTES * d)
    return together(
        *parts,
        tokens=n + sum(part.tokens for part in parts),
        # Nearest neighbours among the rows, and among as many random ones; two spectra.
        product_flops=2.0 * m * m * d
        + 4.0 * d * d * (min(COVARIANCE_TOKENS, n) + m)
        + 20.0 * float(d) ** 3,
        # Sums in float64 over inputs and outputs, and over what means are fitted to.
        moved_bytes=(n * 160.0 + (n + cached) * 80.0) * d,
        held_bytes=coding_bytes(recipe, d, m) + 12.0 * size.vocab_size * d + held,
        gpu_bytes=coding_gpu_bytes(recipe, d, m) + max(geometry, passes),
        imports="transformers" if with_model else "torch",
        # Includes the kept copies.
        written_bytes=4e4,
        gpu=True,
    )


def cross_evaluate(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to reconstruct some of each variant's `eval`, unscaled and rescaled."""
    recipe, d, m = study.sae(keys)
    limit = study.config.evaluation.cross_tokens or 0
    n = min(limit, study.cached(keys, "eval")) * len(cross_cells(study.config, keys))
    # The norm first, then the codes.
    passes = [
        part
        for cell in cross_cells(study.config, keys)
        for part in anew(study, {**keys, **cell}, [keys["site"]], 2 * limit)
    ]
    live = anew_bytes(study, keys, [keys["site"]])
    return together(
        encoding(recipe, d, m, n),
        *passes,
        tokens=n,
        moved_bytes=n * 160.0 * d,
        held_bytes=coding_bytes(recipe, d, m) + 1.5 * SUMMED_BYTES * d + live,
        gpu_bytes=coding_gpu_bytes(recipe, d, m) + live,
        imports="transformers" if passes else "torch",
        written_bytes=2e4,
        gpu=True,
    )


def match_dictionaries(study: SizedStudy, keys: Keys) -> Work:
    """Return the work for cosines of each pair, and the assignment, in practice about m n.

    Memory: two decoders, one with its encoder while it is read; 8 bytes per pair of latents.
    """
    recipe, d, m = study.sae(keys)
    n_saes = len(matched_cells(study.config, keys["subject"], keys["site"], keys["sae"]))
    matched = min(m, study.config.evaluation.matching_latents)
    seeds, draws = len(recipe.seeds), study.config.draws
    # Seeds of one variant and draw, draws of one variant and seed, variants against trained.
    pairs = n_saes * (seeds - 1 + draws - 1) / 2 + n_saes * (1 - 1 / len(study.config.variants)) + 1
    return Work(
        product_flops=2.0 * matched * m * d * pairs,
        host_seconds=SCIPY_SECONDS + pairs * matched * m * ASSIGNMENT_SECONDS,
        moved_bytes=n_saes * 3 * sae_bytes(d, m),
        written_bytes=2e4,
        held_bytes=2.0 * sae_bytes(d, m) + 8.0 * matched * m + SCIPY_BYTES,
        imports="torch",
    )


def explain_latents(study: SizedStudy, keys: Keys) -> Work:
    """Return the work for token statistics, or for requests, without waiting for answers."""
    n, held = study.config.latents.n_sampled, SHOWN_COPIES * window_bytes(study)
    return Work(host_seconds=n * EXPLANATION_SECONDS, written_bytes=n * 2_000.0, held_bytes=held)


def explain_and_scores(study: SizedStudy, cells: list[Keys]) -> Work:
    """Return the work for the explanations and scores of one job, in sequence."""
    return in_turn([explain_and_score(study, cell) for cell in cells])


def explain_and_score(study: SizedStudy, keys: Keys) -> Work:
    """Return the work for explanations or scores without an endpoint."""
    return (score_latents if "scorer" in keys else explain_latents)(study, keys)


def score_latents(study: SizedStudy, keys: Keys) -> Work:
    """Return the work for a formula, requests, or passes of a model that the job runs itself.

    Memory: the windows; a model, and the logits of a batch.
    """
    settings, scorer = study.config.latents, study.config.scorers[keys["scorer"]]
    n, held = settings.n_sampled * judged_windows(study), SHOWN_COPIES * window_bytes(study)
    if scorer.model_in_job is not None:
        read, context = scorer.tokens_read(settings.window_tokens)
        judge = study.judges[keys["scorer"]]
        held += judge.weight_bytes + 4.0 * LOSS_LOGIT_BYTES
        passes = forward(judge, n * read, context, head=True)
        written = n * 30.0
        return together(
            passes,
            imports="transformers",
            written_bytes=written,
            held_bytes=held,
            gpu_bytes=judge.weight_bytes + 4.0 * LOSS_LOGIT_BYTES,
            gpu=True,
        )
    seconds = n * JUDGED_SECONDS * scorer.relative_seconds
    return Work(host_seconds=seconds, written_bytes=n * 30.0, held_bytes=held)


def judged_windows(study: SizedStudy) -> int:
    """Return the number of windows of a latent that a scorer judges."""
    return study.config.latents.score_active_windows + study.config.latents.score_silent_windows


def n_shards(study: SizedStudy, keys: Keys) -> int:
    """Return the number of jobs that share an SAE's latents; 0 if one job has all."""
    each = study.config.autointerp.latents_per_job
    rule = "score_latents" if "scorer" in keys else "explain_latents"
    if each is None or not is_shared_out(study.config, rule, keys):
        return 0
    return -(-study.config.latents.n_sampled // each)


def explain_shard(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to explain some latents."""
    return explain_latents(study, keys).shared(n_shards(study, keys))


def score_shard(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to score some latents."""
    return score_latents(study, keys).shared(n_shards(study, keys))


def prepare_judge(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to load and save a model, with a copy in memory while it is written."""
    size = study.judges[keys["scorer"]].weight_bytes
    return Work(
        moved_bytes=20.0 * size, written_bytes=size, held_bytes=2.0 * size, imports="transformers"
    )


def aggregate(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to read all cells, resample units of each metric and variant, and rank."""
    config = study.config
    saes = sum(
        len(subject.sites) * len(config.draws_of(variant, name)) * len(recipe.seeds)
        for name, subject in config.subjects.items()
        for variant in config.variants
        for recipe in config.saes.values()
    )
    scored = len(config.scored_pairs())
    estimates = saes * (METRICS_PER_SAE + METRICS_PER_SCORE * scored)
    seconds = estimates * (ESTIMATE_SECONDS + config.statistics.n_resamples * RESAMPLE_SECONDS)
    ranked = n_ranked(study)
    seconds += ranked * RANKED_SECONDS
    written = saes * (2e5 + 5e4 * scored) + ranked * RANKED_FILE_BYTES
    held = STATISTICS_BYTES + joined_bytes(study)
    return Work(host_seconds=seconds, written_bytes=written, held_bytes=held)


def report(study: SizedStudy, keys: Keys) -> Work:
    """Return the work to draw figures, in each format, and the page."""
    config = study.config
    n = FIGURES * len(config.subjects) * len(config.report.figure_formats)
    held = DRAWING_BYTES + joined_bytes(study)
    return Work(host_seconds=n * FIGURE_SECONDS, written_bytes=n * 1e5, held_bytes=held)


def joined_bytes(study: SizedStudy) -> float:
    """Return the memory to join all latents (300 bytes each), predictions (100) and rankings."""
    widths = [study.sae(cell)[2] for cell in sae_cells(study.config)]
    judged = len(study.config.scored_pairs()) * study.config.latents.n_sampled
    joined = 300.0 * sum(widths) + 100.0 * (len(widths) * judged * judged_windows(study))
    return joined + n_ranked(study) * RANKED_BYTES


def n_ranked(study: SizedStudy) -> int:
    """Return the rows of the table `latents_ranked`: against each null, and all together."""
    config = study.config
    trained = [cell for cell in sae_cells(config) if cell["variant"] == "trained"]
    widths = [study.sae(cell)[2] for cell in trained if cell["sae"] in config.saes]
    nulls = sum(map(is_null, config.variants))
    return METRICS_RANKED * sum(widths) * (nulls + 1 if nulls else 0)
