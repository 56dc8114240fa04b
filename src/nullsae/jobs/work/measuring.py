"""Formulas of the rules that measure: SAEs, latents, explanations, tables, figures.

Constants in seconds are of one core of the reference CPU. d is the width of a subject, m the
latents of an SAE.
"""

from __future__ import annotations

from dataclasses import replace

from nullsae.config.model_size import BYTES
from nullsae.config.saes import Sae
from nullsae.config.sites import site_layer
from nullsae.config.variants import has_model, is_null
from nullsae.jobs.autointerp import is_shared_out
from nullsae.jobs.grid import Keys, cross_cells, matched_cells, sae_cells
from nullsae.jobs.work.amounts import (
    BLOCK_NUMBERS,
    SizedStudy,
    Work,
    encoding,
    forward,
    in_turn,
    sae_bytes,
    together,
)
from nullsae.jobs.work.making import LOSS_LOGIT_BYTES, anew, anew_bytes

# What the C library keeps of tensors that were freed.
FREED_BYTES = 3e7
# Of a logit while predictions are compared, beside `Size.logit_bytes`.
COVARIANCE_TOKENS, FIDELITY_CONTEXTS, COMPARED_LOGITS = 65_536, 16, 12.0
# Of an entry of the matrix of costs; and to import SciPy's solver.
ASSIGNMENT_SECONDS, SCIPY_SECONDS, SCIPY_BYTES = 8e-8, 0.65, 5e7
FIRING_SECONDS, WINDOW_SECONDS, LATENT_SECONDS = 3e-7, 4e-5, 2e-5
LATENT_BYTES, WINDOW_TOKEN_BYTES = 90.0, 2.5
# Firings of a run, of a piece that is described, and what one takes while it waits, while runs are
# sorted, while it is described, and in the search for silent windows.
RUN_FIRINGS, PIECE_FIRINGS = 2**20, 2**19
HELD_FIRING, SORTED_FIRING, DESCRIBED_FIRING, CO_OCCURRING_FIRING = 10.0, 30.0, 150.0, 30.0
# The windows of an SAE as Python objects, over what they take in a table.
EXPLANATION_SECONDS, JUDGED_SECONDS, SHOWN_COPIES = 4e-3, 4.5e-5, 8.0
METRICS_PER_SAE, METRICS_PER_SCORE = 16, 8
ESTIMATE_SECONDS, RESAMPLE_SECONDS = 3e-3, 0.8e-6
# Of a latent that is ranked by one metric against one null: metrics of all passing latents.
METRICS_RANKED, RANKED_SECONDS, RANKED_BYTES, RANKED_FILE_BYTES = 5, 1.5e-6, 170.0, 15.0
FIGURES, FIGURE_SECONDS = 30, 0.25
# What statistics, and what draws figures, load and hold of any study.
STATISTICS_BYTES, DRAWING_BYTES = 2.1e8, 1.65e8
# Tokens that are captured at once to take latents away, rows of a pass, its logits, and those whose
# log-probabilities are compared at once; bytes of one.
CAUSAL_TOKENS, CAUSAL_ROWS, CAUSAL_LOGITS = 2**14, 2**9, 2**23
COMPARED_LOGITS_AT_ONCE, COMPARED_LOGIT_BYTES = 2**21, 60.0
# Effects of three directions that a product computes; those that are ranked at once, or as many
# successors or firings; bytes of one, and of a token with its successor.
EFFECTS, EFFECT_BYTES, RANKED, RANKED_EFFECT_BYTES, PAIR_BYTES = 2**21, 12.0, 2**18, 250.0, 40.0
# An SAE's batch outside training, and the entries of its pre-activations at once.
BATCH_TOKENS, CHUNK_ENTRIES, CHUNK_ROWS, GPU_CHUNK_ENTRIES = 4096, 2**20, 256, 2**28
# Of each dimension while a batch is summed in float64: what goes in and comes out, twice each, and
# three terms.
SUMMED_BYTES = 56.0 * BATCH_TOKENS


def evaluate_saes(study: SizedStudy, cells: list[Keys]) -> Work:
    """The SAEs of one job: one after the other, or those that share the passes together.

    Held, of those: all SAEs, means of each token at each site, and a shard of all sites.
    """
    each = in_turn([evaluate_sae(study, cell) for cell in cells])
    settings = study.config.activations
    if settings.kept:
        return each
    groups: dict[tuple[str, str], list[Keys]] = {}
    for cell in cells:
        site = "" if settings.sites_together else cell["site"]
        groups.setdefault((cell["variant"], site), []).append(cell)
    passes, held, on_gpu = [], 0.0, 0.0
    for group in groups.values():
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
    """Reconstruct `eval`; means per token; geometry of the decoder; four passes for fidelity.

    Held: the SAE and means of each token; a batch in float64; a block of cosines (16 m d for random
    directions, which are normalized in float64, 16 MiB, 24 d^2 for a spectrum), then a subject with
    clean and other logits.
    """
    size, (recipe, d, m) = study.sizes[keys["subject"]], study.sae(keys)
    n, cached = study.cached(keys, "eval"), study.cached(keys, "sae_train")
    parts, passes = [encoding(recipe, d, m, n)], 0.0
    with_model = has_model(keys["variant"])
    if with_model:
        fidelity = min(study.config.evaluation.fidelity_tokens, n)
        parts += 4 * [forward(size, fidelity, study.context_tokens(keys), head=True)]
        parts.append(encoding(recipe, d, m, fidelity))
        compared = FIDELITY_CONTEXTS * study.context_tokens(keys) * COMPARED_LOGITS
        passes = study.pass_bytes(keys, FIDELITY_CONTEXTS, head=True) + compared * size.vocab_size
    geometry = 16.0 * m * d + 2**24 + 24.0 * d * d
    held = FREED_BYTES + max(geometry, passes, SUMMED_BYTES * d)
    return together(
        *parts,
        tokens=n + sum(part.tokens for part in parts),
        # Nearest neighbours among the rows, and among as many random ones; two spectra.
        product_flops=2.0 * m * m * d
        + 4.0 * d * d * (min(COVARIANCE_TOKENS, n) + m)
        + 20.0 * float(d) ** 3,
        # Sums in float64 over what goes in and comes out, and over what means are fitted to.
        moved_bytes=(n * 160.0 + (n + cached) * 80.0) * d,
        held_bytes=coding_bytes(recipe, d, m) + 12.0 * size.vocab_size * d + held,
        gpu_bytes=coding_gpu_bytes(recipe, d, m) + max(geometry, passes),
        imports="transformers" if with_model else "torch",
        # A copy of them is kept.
        written_bytes=4e4,
        gpu=True,
    )


def cross_evaluate(study: SizedStudy, keys: Keys) -> Work:
    """Reconstruct some of `eval` of each variant, as it is and rescaled."""
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
    """Cosines of each pair, and the assignment, whose time is near m n in practice.

    Held: two decoders, one beside its encoder while it is read; 8 bytes per pair of latents.
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


def collect_latents(study: SizedStudy, keys: Keys) -> Work:
    """Encode `eval`, sort all firings, cut windows for the sampled latents; passes of the subject.

    Held: the table of docs/latents.md. What the data decide counts at its most: k firings on each
    token, as many sampled latents as are asked for, and all latents through the filter as far as
    their firings go. A job holds less by a fifth at most: what one of these takes is bounded, and
    a job that is killed for its memory starts anew.
    """
    (recipe, d, m), settings = study.sae(keys), study.config.latents
    passes, site = causal_passes(study, keys), [keys["site"]]
    n, n_eval = study.cached(keys, "eval"), study.corpus(keys).eval_tokens
    rows, fired = settings.n_sampled * windows_of(study), n * recipe.kept
    one, piece = sae_bytes(d, m), min(PIECE_FIRINGS, fired)
    kinds = {"nearest": 25.0 * n_eval / 2, "co_occurring": CO_OCCURRING_FIRING * piece}
    silent = sum(kinds.get(kind, 0.0) for kind in settings.silent_windows)
    run = min(RUN_FIRINGS, fired)
    live = anew_bytes(study, keys, site)
    encoding_ = coding_bytes(recipe, d, m) - one + HELD_FIRING * run + live
    sorting = (HELD_FIRING + SORTED_FIRING) * run + live
    windows = 2.0 * window_bytes(study)
    most = max(encoding_, sorting, DESCRIBED_FIRING * piece, windows + silent)
    effects = effects_bytes(study, keys) + windows if passes else 0.0
    computed = anew(study, keys, site, n)
    held = one + 350.0 * m + 66.0 * n_eval / settings.window_tokens
    return together(
        encoding(recipe, d, m, n),
        *computed,
        *passes,
        tokens=n + sum(part.tokens for part in passes),
        host_seconds=fired * FIRING_SECONDS + rows * WINDOW_SECONDS + m * LATENT_SECONDS,
        written_bytes=m * LATENT_BYTES + rows * settings.window_tokens * WINDOW_TOKEN_BYTES,
        held_bytes=held + max(most, effects),
        gpu_bytes=coding_gpu_bytes(recipe, d, m) + max(effects, live),
        imports="transformers" if passes or computed else "torch",
        gpu=True,
    )


def effects_bytes(study: SizedStudy, keys: Keys) -> float:
    """The subject, and what asks it: the most of ranks of direct effects, and of changed passes.

    A rank is that of one of three directions among the effects on all tokens; a random one is drawn
    for each latent. Of a pass: activations before the change, logits, and log-probabilities.
    """
    (recipe, d, m), settings = study.sae(keys), study.config.latents
    size, n_eval = study.sizes[keys["subject"]], study.corpus(keys).eval_tokens
    vocab, places = size.vocab_size, settings.n_sampled * settings.causal_places
    fired = study.cached(keys, "eval") * recipe.kept
    passing = min(m, fired // settings.min_firings)
    ranked = max(min(RANKED, passing * vocab), vocab)
    # The map to the logits, which is centred in a copy.
    direct = 4.0 * vocab * d + max(
        4.0 * vocab * d,
        sae_bytes(d, m) / 2
        + PAIR_BYTES * n_eval
        + EFFECT_BYTES * max(min(EFFECTS, passing * vocab), vocab)
        + RANKED_EFFECT_BYTES * ranked,
    )
    captured = min(CAUSAL_TOKENS, n_eval, places * study.context_tokens(keys))
    before = captured * BLOCK_NUMBERS * size.d_model * BYTES[size.dtype]
    logits = min(CAUSAL_LOGITS, min(CAUSAL_ROWS, 4 * places) * vocab)
    compared = COMPARED_LOGIT_BYTES * max(min(COMPARED_LOGITS_AT_ONCE, logits), 4 * vocab)
    changed = PAIR_BYTES * n_eval + max(before, 8.0 * logits + compared)
    return size.weight_bytes + max(direct, changed)


def collect_latents_of_all(study: SizedStudy, cells: list[Keys]) -> Work:
    """The SAEs of a job, one after the other."""
    return in_turn([collect_latents(study, cell) for cell in cells])


def causal_passes(study: SizedStudy, keys: Keys) -> list[Work]:
    """Passes in which a direction is taken away, or added, or a token is written; none without any.

    Contexts are cut behind the change, in the middle on average. Passes with a direction begin at
    the site, four for each place; the head reads one token of each.
    """
    settings, size = study.config.latents, study.sizes[keys["subject"]]
    if not has_model(keys["variant"]) or keys["site"] == "embed":
        return []
    context = study.context_tokens(keys)
    places = settings.n_sampled * settings.causal_places
    before = min(size.n_layers, site_layer(keys["site"]) + 1)
    captured = 2.0 * min(places * context, study.corpus(keys).eval_tokens)
    changed = 2 * 4 * places
    head = replace(forward(size, changed, context, blocks=0, head=True), tokens=0)
    return [
        forward(size, captured, context, blocks=before),
        forward(size, changed * context / 2, context // 2, blocks=size.n_layers - before),
        forward(size, places * context / 2, context // 2, blocks=before),
        head,
    ]


def windows_of(study: SizedStudy) -> int:
    """Windows that are cut for a latent."""
    s = study.config.latents
    silent = s.score_silent_windows * len(s.silent_windows)
    return s.explain_active_windows + s.explain_silent_windows + s.score_active_windows + silent


def window_bytes(study: SizedStudy) -> float:
    """The windows of an SAE in memory."""
    settings = study.config.latents
    return settings.n_sampled * windows_of(study) * (12.0 * settings.window_tokens + 60)


def explain_latents(study: SizedStudy, keys: Keys) -> Work:
    """Token statistics, or questions, whose answers are awaited elsewhere."""
    n, held = study.config.latents.n_sampled, SHOWN_COPIES * window_bytes(study)
    return Work(host_seconds=n * EXPLANATION_SECONDS, written_bytes=n * 2_000.0, held_bytes=held)


def explain_and_scores(study: SizedStudy, cells: list[Keys]) -> Work:
    """The explanations and scores of one job, one after the other."""
    return in_turn([explain_and_score(study, cell) for cell in cells])


def explain_and_score(study: SizedStudy, keys: Keys) -> Work:
    """Explanations or scores that ask nobody."""
    return (score_latents if "scorer" in keys else explain_latents)(study, keys)


def score_latents(study: SizedStudy, keys: Keys) -> Work:
    """A formula, questions, or passes of a model that the job runs itself.

    Held: the windows; a model, and the logits of a batch.
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
    """Windows of a latent that a scorer judges."""
    return study.config.latents.score_active_windows + study.config.latents.score_silent_windows


def n_shards(study: SizedStudy, keys: Keys) -> int:
    """Jobs that share an SAE's latents among them; 0 where one job has them all."""
    each = study.config.autointerp.latents_per_job
    rule = "score_latents" if "scorer" in keys else "explain_latents"
    if each is None or not is_shared_out(study.config, rule, keys):
        return 0
    return -(-study.config.latents.n_sampled // each)


def explain_shard(study: SizedStudy, keys: Keys) -> Work:
    """Explanations of some latents."""
    return explain_latents(study, keys).shared(n_shards(study, keys))


def score_shard(study: SizedStudy, keys: Keys) -> Work:
    """Scores of some latents."""
    return score_latents(study, keys).shared(n_shards(study, keys))


def prepare_judge(study: SizedStudy, keys: Keys) -> Work:
    """Load a model and save it. Held: the model, and a copy while it is written."""
    size = study.judges[keys["scorer"]].weight_bytes
    return Work(
        moved_bytes=20.0 * size, written_bytes=size, held_bytes=2.0 * size, imports="transformers"
    )


def aggregate(study: SizedStudy, keys: Keys) -> Work:
    """Read all cells; resample the units of each metric and variant; rank latents."""
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
    """Figures, in each format, and the page."""
    config = study.config
    n = FIGURES * len(config.subjects) * len(config.report.figure_formats)
    held = DRAWING_BYTES + joined_bytes(study)
    return Work(host_seconds=n * FIGURE_SECONDS, written_bytes=n * 1e5, held_bytes=held)


def joined_bytes(study: SizedStudy) -> float:
    """All latents and predictions, of 300 and 100 bytes, while they are joined; ranked latents."""
    widths = [study.sae(cell)[2] for cell in sae_cells(study.config)]
    judged = len(study.config.scored_pairs()) * study.config.latents.n_sampled
    joined = 300.0 * sum(widths) + 100.0 * (len(widths) * judged * judged_windows(study))
    return joined + n_ranked(study) * RANKED_BYTES


def n_ranked(study: SizedStudy) -> int:
    """Rows of the table `latents_ranked`: against each null, and all of them together."""
    config = study.config
    trained = [cell for cell in sae_cells(config) if cell["variant"] == "trained"]
    widths = [study.sae(cell)[2] for cell in trained if cell["sae"] in config.saes]
    nulls = sum(map(is_null, config.variants))
    return METRICS_RANKED * sum(widths) * (nulls + 1 if nulls else 0)


def coding_bytes(recipe: Sae, d: int, m: int) -> float:
    """An SAE that encodes: 1.5 times its weights, a batch, pre-activations (docs/latents.md)."""
    batch = BATCH_TOKENS * (10.0 * d + 12.0 * recipe.kept)
    return 1.5 * sae_bytes(d, m) + batch + 8.0 * max(CHUNK_ENTRIES, CHUNK_ROWS * m)


def coding_gpu_bytes(recipe: Sae, d: int, m: int) -> float:
    """The same on a GPU, which takes more tokens' pre-activations at once."""
    batch = BATCH_TOKENS * (10.0 * d + 12.0 * recipe.kept)
    return 1.5 * sae_bytes(d, m) + batch + 8.0 * min(BATCH_TOKENS * m, GPU_CHUNK_ENTRIES)
