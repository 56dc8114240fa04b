"""Formulas of the rules that measure: SAEs, latents, explanations, tables, figures.

Constants in seconds are of one core of the reference CPU.
"""

from __future__ import annotations

from nullsae.config.variants import has_model
from nullsae.jobs.autointerp import is_shared_out
from nullsae.jobs.grid import Keys, cross_cells, matched_cells
from nullsae.jobs.work.amounts import SizedStudy, Work, encoding, forward, sae_bytes, together
from nullsae.jobs.work.making import shared

COVARIANCE_TOKENS = 65_536


def evaluate_sae(study: SizedStudy, keys: Keys) -> Work:
    """Reconstruct `eval`; means per token; geometry of the decoder; four passes for fidelity."""
    size, recipe = study.sizes[keys["subject"]], study.recipe(keys)
    d, n, cached = size.d_model, study.cached(keys, "eval"), study.cached(keys, "sae_train")
    m = study.width(keys, recipe)
    parts = [encoding(recipe, d, m, n)]
    with_model = has_model(keys["variant"])
    if with_model:
        fidelity = min(study.config.evaluation.fidelity_tokens, n)
        parts += 4 * [forward(size, fidelity, study.context_tokens(keys), head=True)]
        parts.append(encoding(recipe, d, m, fidelity))
    return together(
        *parts,
        tokens=n + sum(part.tokens for part in parts),
        # Nearest neighbours among the rows, and among as many random ones; two spectra.
        product_flops=2.0 * m * m * d
        + 4.0 * d * d * (min(COVARIANCE_TOKENS, n) + m)
        + 20.0 * float(d) ** 3,
        # Sums in float64 over what goes in and comes out, and over what means are fitted to.
        moved_bytes=(n * 160.0 + (n + cached) * 80.0) * d,
        imports="transformers" if with_model else "torch",
        written_bytes=2e4,
        gpu=True,
    )


def cross_evaluate(study: SizedStudy, keys: Keys) -> Work:
    """Reconstruct some of `eval` of each variant."""
    size, recipe = study.sizes[keys["subject"]], study.recipe(keys)
    limit = study.config.evaluation.cross_tokens or 0
    n = min(limit, study.cached(keys, "eval")) * len(cross_cells(study.config, keys))
    part = encoding(recipe, size.d_model, study.width(keys, recipe), n)
    moved = n * 160.0 * size.d_model
    return together(part, tokens=n, moved_bytes=moved, imports="torch", written_bytes=2e4, gpu=True)


def match_dictionaries(study: SizedStudy, keys: Keys) -> Work:
    """Cosines of each pair, and the assignment, whose time is near m n in practice."""
    recipe = study.config.saes[keys["sae"]]
    n_saes = len(matched_cells(study.config, keys["sae"]))
    m = study.width(keys, recipe)
    matched = min(m, study.config.evaluation.matching_latents)
    seeds, draws = len(recipe.seeds), study.config.draws
    # Seeds of one variant and draw, draws of one variant and seed, variants against trained.
    pairs = n_saes * (seeds - 1 + draws - 1) / 2 + n_saes * (1 - 1 / len(study.config.variants)) + 1
    d = study.sizes[keys["subject"]].d_model
    return Work(
        product_flops=2.0 * matched * m * d * pairs,
        host_seconds=pairs * matched * m * ASSIGNMENT_SECONDS,
        moved_bytes=n_saes * 3 * sae_bytes(d, m),
        written_bytes=2e4,
        imports="torch",
    )


ASSIGNMENT_SECONDS = 4e-8


def collect_latents(study: SizedStudy, keys: Keys) -> Work:
    """Encode `eval`, sort all firings, cut windows for the sampled latents."""
    size, recipe, settings = study.sizes[keys["subject"]], study.recipe(keys), study.config.latents
    n, m = study.cached(keys, "eval"), study.width(keys, study.recipe(keys))
    rows = settings.n_sampled * windows_of(study)
    return together(
        encoding(recipe, size.d_model, m, n),
        tokens=n,
        host_seconds=n * recipe.kept * FIRING_SECONDS + rows * WINDOW_SECONDS + m * LATENT_SECONDS,
        written_bytes=m * LATENT_BYTES + rows * settings.window_tokens * WINDOW_TOKEN_BYTES,
        imports="torch",
        gpu=True,
    )


def windows_of(study: SizedStudy) -> int:
    """Windows that are cut for a latent."""
    s = study.config.latents
    silent = s.score_silent_windows * len(s.silent_windows)
    return s.explain_active_windows + s.explain_silent_windows + s.score_active_windows + silent


FIRING_SECONDS, WINDOW_SECONDS, LATENT_SECONDS = 3e-7, 4e-5, 2e-5
LATENT_BYTES, WINDOW_TOKEN_BYTES = 90.0, 2.5


def explain_latents(study: SizedStudy, keys: Keys) -> Work:
    """Token statistics, or questions, whose answers are awaited elsewhere."""
    n = study.config.latents.n_sampled
    return Work(host_seconds=n * EXPLANATION_SECONDS, written_bytes=n * 2_000.0)


EXPLANATION_SECONDS = 4e-3


def score_latents(study: SizedStudy, keys: Keys) -> Work:
    """A formula, questions, or passes of a model that the job runs itself."""
    settings, scorer = study.config.latents, study.config.scorers[keys["scorer"]]
    n = settings.n_sampled * (settings.score_active_windows + settings.score_silent_windows)
    if scorer.model_in_job is not None:
        read, context = scorer.tokens_read(settings.window_tokens)
        passes = forward(study.judges[keys["scorer"]], n * read, context, head=True)
        return together(passes, imports="transformers", written_bytes=n * 30.0, gpu=True)
    seconds = n * JUDGED_SECONDS * scorer.relative_seconds
    return Work(host_seconds=seconds, written_bytes=n * 30.0)


JUDGED_SECONDS = 4.5e-5


def n_shards(study: SizedStudy, keys: Keys) -> int:
    """Jobs that share an SAE's latents among them; 0 where one job has them all."""
    each = study.config.autointerp.latents_per_job
    if each is None:
        return 0
    rule = "score_latents" if "scorer" in keys else "explain_latents"
    if not is_shared_out(study.config, rule, keys):
        return 0
    return -(-study.config.latents.n_sampled // each)


def explain_shard(study: SizedStudy, keys: Keys) -> Work:
    """Explanations of some latents."""
    return shared(explain_latents(study, keys), n_shards(study, keys))


def score_shard(study: SizedStudy, keys: Keys) -> Work:
    """Scores of some latents."""
    return shared(score_latents(study, keys), n_shards(study, keys))


def prepare_judge(study: SizedStudy, keys: Keys) -> Work:
    """Load a model and save it."""
    written = study.judges[keys["scorer"]].weight_bytes
    return Work(moved_bytes=20.0 * written, written_bytes=written, imports="transformers")


def aggregate(study: SizedStudy, keys: Keys) -> Work:
    """Read all cells; resample the units of each metric and variant."""
    config = study.config
    saes = sum(
        len(subject.sites) * len(config.draws_of(variant)) * len(recipe.seeds)
        for subject in config.subjects.values()
        for variant in config.variants
        for recipe in config.saes.values()
    )
    scored = len(config.scored_pairs())
    estimates = saes * (METRICS_PER_SAE + METRICS_PER_SCORE * scored)
    return Work(
        host_seconds=estimates
        * (ESTIMATE_SECONDS + config.statistics.n_resamples * RESAMPLE_SECONDS),
        written_bytes=saes * (2e5 + 5e4 * scored),
        imports="light",
    )


METRICS_PER_SAE, METRICS_PER_SCORE = 8, 4
ESTIMATE_SECONDS, RESAMPLE_SECONDS = 3e-3, 0.8e-6


def report(study: SizedStudy, keys: Keys) -> Work:
    """Figures, in each format, and the page."""
    config = study.config
    figures = 12 * len(config.subjects) * len(config.report.figure_formats)
    return Work(host_seconds=figures * FIGURE_SECONDS, written_bytes=figures * 1e5)


FIGURE_SECONDS = 0.21
