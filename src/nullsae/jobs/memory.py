"""Bytes of memory that a job of each rule holds at its highest, beside Python and its libraries.

d is the width of a subject, m the latents of an SAE, V the vocabulary, T the tokens of a context.
"""

from __future__ import annotations

from collections.abc import Callable

from nullsae.config.corpora import HubSource
from nullsae.config.model_size import BYTES, Size
from nullsae.config.saes import Sae
from nullsae.config.subjects import TrainSource
from nullsae.config.variants import VARIANTS, has_model
from nullsae.jobs.grid import Keys, sae_cells
from nullsae.jobs.work.amounts import SizedStudy, sae_bytes
from nullsae.jobs.work.measuring import windows_of

Memory = Callable[[SizedStudy, list[Keys], bool], float]
"""Bytes by study, the keys of what the job makes, and whether it runs on the CPU."""

# Of an interpreter that has imported them, by what a verb imports: a third more than the most of
# the default study's jobs; CUDA's share of the host's memory on top.
LIBRARIES = {
    "light": 5e8,
    "torch": 7e8,
    "optimizer": 8e8,
    "transformers": 9e8,
    "all": 10e8,
    "cuda": 3e9,
}
# Copies of a batch's logits: as the model gives them, in float32, their logarithms, the loss.
LOGIT_COPIES = 4
# The loss of a variant is taken over so many contexts, and so many bytes of logits, at once.
LOSS_CONTEXTS, LOSS_LOGIT_BYTES, FIDELITY_CONTEXTS = 32, 2**28, 16
# Activations of a chunk: one captured, one written, both permuted or pinned.
CHUNK_COPIES = 4
# An SAE's batch outside training, and the entries of its pre-activations at once.
BATCH_TOKENS, CHUNK_ENTRIES, CHUNK_ROWS = 4096, 2**20, 256
SAMPLE_TOKENS = 32_768
SORTED_BYTES = 150 * 2**19
NGRAM_TOKENS = 10_000_000


def forward_bytes(study: SizedStudy, keys: Keys, n_contexts: int, *, head: bool) -> float:
    """A subject and one batch through it: a block's tensors, about 20 d numbers a token."""
    size, context = study.sizes[keys["subject"]], study.context_tokens(keys)
    batch = n_contexts * context * 20.0 * size.d_model * BYTES[size.dtype]
    logits = n_contexts * context * size.vocab_size * 4.0 * LOGIT_COPIES if head else 0.0
    return size.weight_bytes + batch + logits


def coding_bytes(recipe: Sae, d: int, m: int) -> float:
    """An SAE that encodes: 1.5 times its weights, a batch, pre-activations (docs/latents.md)."""
    batch = BATCH_TOKENS * (10.0 * d + 12.0 * recipe.kept)
    return 1.5 * sae_bytes(d, m) + batch + 8.0 * max(CHUNK_ENTRIES, CHUNK_ROWS * m)


def prepare_corpus(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """Texts unless they are streamed, twice while sorted; 12 bytes per packed token; pairs."""
    name = cells[0]["corpus"]
    size, source = study.corpora[name], study.config.corpora[name].source
    streamed = isinstance(source, HubSource) and source.streaming
    held = 0.0 if streamed else 12.0 * size.read_tokens
    packed = 12.0 * max(size.sae_train_tokens, size.eval_tokens)
    return held + packed + 24.0 * min(size.sae_train_tokens, NGRAM_TOKENS)


def train_subject(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """Six times the weights (gradients, two moments, the start, a checkpoint), and a batch.

    A batch keeps 68 d + 10 T heads bytes per token and block in float32: twice table 2 of
    Korthikanti et al. 2022 (arXiv 2205.05198), which is for half precision.
    """
    keys = cells[0]
    size, source = study.sizes[keys["subject"]], study.config.subjects[keys["subject"]].source
    assert isinstance(source, TrainSource)
    context = study.context_tokens(keys)
    block = 68.0 * size.d_model + 10.0 * context * source.n_heads
    token = size.n_layers * block + 4.0 * LOGIT_COPIES * size.vocab_size
    return 24.0 * size.n_parameters + source.batch_contexts * context * token


def randomize_model(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """Twice the weights, and 49 bytes per entry of the largest tensor while gates compare it.

    Measured at 168 MB of weights. Logits of the loss come after, and need less than the gates.
    """
    keys = cells[0]
    size = study.sizes[keys["subject"]]
    drawn = not VARIANTS[keys["variant"]].fixed
    context = study.context_tokens(keys)
    logits = min(LOSS_LOGIT_BYTES, LOSS_CONTEXTS * context * size.vocab_size * 4)
    return 2.0 * size.weight_bytes + max(49.0 * size.largest_tensor * drawn, 4.0 * logits)


def capture(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """A subject, a batch, and two chunks of all sites, each twice (pinned, or permuted)."""
    keys = cells[0]
    settings = study.config.activations
    sites = len(study.config.subjects[keys["subject"]].sites)
    row = study.sizes[keys["subject"]].d_model * BYTES[settings.dtype] + 8.0
    held = CHUNK_COPIES * sites * _chunk(study, keys) * row
    return forward_bytes(study, keys, settings.batch_contexts, head=False) + held


def cache_activations(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """As `capture`; nothing where other jobs captured."""
    return capture(study, cells, on_cpu) if study.config.activations.chunks == 1 else 0.0


def sample_gaussian(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """A chunk, a covariance and its root in float64, the ids of all tokens, means of each."""
    keys = cells[0]
    size, settings = study.sizes[keys["subject"]], study.config.activations
    n_ids = study.corpus(keys).of(keys["split"])
    chunk = CHUNK_COPIES * _chunk(study, keys) * size.d_model * BYTES[settings.dtype]
    return chunk + 80.0 * size.d_model**2 + 8.0 * n_ids + 128.0 * size.vocab_size


def train_saes(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """All SAEs of a job with gradients and moments on the CPU; on a GPU, a checkpoint of one.

    A checkpoint copies weights and two moments, three times an SAE, to the host at once; an SAE is
    scaled into a copy when it is written. Beside them the start of the data, and blocks of it.
    """
    keys, settings = cells[0], study.config.activations
    d = study.sizes[keys["subject"]].d_model
    steps = copies = fitted = 0.0
    for cell in cells:
        recipe = study.recipe(cell)
        m = study.width(cell, recipe)
        if not recipe.origin.trained or recipe.pretrained is not None:
            fitted = max(fitted, 3 * sae_bytes(d, m) + 32.0 * d * d)
            continue
        copies = max(copies, sae_bytes(d, m) * (1 if on_cpu else 3))
        if on_cpu:
            one = recipe.training()
            steps += one.step_bytes(recipe, d_model=d, n_latents=m, k=recipe.kept)
    sites = len({cell["site"] for cell in cells})
    start = sites * d * 4.0 * (SAMPLE_TOKENS + max(study.recipe(c).heldout_tokens for c in cells))
    blocks = 2.0 * sites * _chunk(study, keys) * d * BYTES[settings.dtype]
    live = settings.mode == "stream" and has_model(keys["variant"])
    passes = forward_bytes(study, keys, settings.batch_contexts, head=False) if live else 0.0
    return max(steps + copies, fitted) + start + blocks + passes


def take_checkpoint(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """Files are copied; a safetensors file is read once."""
    return _sae(study, cells[0])


def evaluate_sae(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """An SAE, means of each token, a block of cosines; then a subject with clean and other logits.

    `decoder_geometry`: 8 m d for directions, 16 MiB for cosines, 8 d^2 for a spectrum.
    """
    keys = cells[0]
    size, recipe = study.sizes[keys["subject"]], study.recipe(keys)
    d, m = size.d_model, study.width(keys, recipe)
    means = 12.0 * size.vocab_size * d
    geometry = 8.0 * m * d + 2**24 + 24.0 * d * d
    passes = (
        forward_bytes(study, keys, FIDELITY_CONTEXTS, head=True)
        if has_model(keys["variant"])
        else 0.0
    )
    return coding_bytes(recipe, d, m) + means + max(geometry, passes)


def cross_evaluate(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """An SAE and a batch."""
    keys = cells[0]
    recipe, d = study.recipe(keys), study.sizes[keys["subject"]].d_model
    return coding_bytes(recipe, d, study.width(keys, recipe))


def match_dictionaries(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """Two decoders, one beside its encoder while it is read; 8 bytes per pair of latents."""
    keys = cells[0]
    recipe = study.config.saes[keys["sae"]]
    m = study.width(keys, recipe)
    matched = min(m, study.config.evaluation.matching_latents)
    return 2.0 * _sae(study, keys) + 8.0 * matched * m


def collect_latents(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """The table of docs/latents.md."""
    keys, settings = cells[0], study.config.latents
    recipe, d = study.recipe(keys), study.sizes[keys["subject"]].d_model
    m, n = study.width(keys, recipe), study.corpus(keys).eval_tokens
    coding = coding_bytes(recipe, d, m)
    kinds = {"nearest": 25.0 * n / 2, "co_occurring": 30.0 * 2**19}
    silent = sum(kinds.get(kind, 0.0) for kind in settings.silent_windows)
    cells_of_eval = 66.0 * n / settings.window_tokens
    return coding + SORTED_BYTES + 350.0 * m + cells_of_eval + silent + _windows(study)


def explain_latents(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """The windows of an SAE."""
    return _windows(study)


def score_latents(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """The windows of an SAE; with `likelihood` a model and the logits of a batch."""
    judge = study.judges.get(cells[0]["scorer"])
    return _windows(study) + (_judge(judge) if judge is not None else 0.0)


def prepare_judge(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """A model, and a copy while it is written."""
    return 2.0 * study.judges[cells[0]["scorer"]].weight_bytes


def aggregate(study: SizedStudy, cells: list[Keys], on_cpu: bool) -> float:
    """All latents and predictions, of 300 and 100 bytes, while they are joined and resampled."""
    config = study.config
    latents = sum(study.width(cell, study.recipe(cell)) for cell in sae_cells(config))
    n_saes = sum(1 for _ in sae_cells(config))
    judged = config.latents.score_active_windows + config.latents.score_silent_windows
    predictions = n_saes * len(config.scored_pairs()) * config.latents.n_sampled * judged
    return 300.0 * latents + 100.0 * predictions


def _judge(size: Size) -> float:
    return size.weight_bytes + float(LOSS_LOGIT_BYTES * LOGIT_COPIES)


def _sae(study: SizedStudy, keys: Keys) -> float:
    recipe = study.config.saes[keys["sae"].split("@")[0]]
    return sae_bytes(study.sizes[keys["subject"]].d_model, study.width(keys, recipe))


def _chunk(study: SizedStudy, keys: Keys) -> int:
    """Tokens that are captured, sampled or read at once."""
    most = study.cached(keys, keys.get("split", "sae_train"))
    return min(study.config.activations.shard_tokens, most)


def _windows(study: SizedStudy) -> float:
    settings = study.config.latents
    return settings.n_sampled * windows_of(study) * (8.0 * settings.window_tokens + 60)


MEMORY: dict[str, Memory] = {
    "prepare_corpus": prepare_corpus,
    "train_subject": train_subject,
    "randomize_model": randomize_model,
    "capture_portion": capture,
    "cache_activations": cache_activations,
    "sample_gaussian": sample_gaussian,
    "train_sae": train_saes,
    "take_checkpoint": take_checkpoint,
    "evaluate_sae": evaluate_sae,
    "cross_evaluate": cross_evaluate,
    "match_dictionaries": match_dictionaries,
    "collect_latents": collect_latents,
    "explain_shard": explain_latents,
    "explain_latents": explain_latents,
    "prepare_judge": prepare_judge,
    "score_shard": score_latents,
    "score_latents": score_latents,
    "aggregate": aggregate,
    "report": aggregate,
}
