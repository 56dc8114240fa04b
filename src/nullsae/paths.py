"""Every path below `results/`, with `{wildcards}` for the keys that it depends on.

The rules use these strings as they are; the code fills them with `str.format`.
Hive-style folders (`key=value`) make each tree one dataset for pandas, DuckDB and Polars.
"""

from __future__ import annotations

from pathlib import Path

MODEL_KEYS = "subject={subject}/variant={variant}/draw={draw}"
SPLIT_KEYS = MODEL_KEYS + "/split={split}"
CELL_KEYS = MODEL_KEYS + "/site={site}/sae={sae}/seed={seed}"
# An SAE after a share of its training.
CHECKPOINT_KEYS = CELL_KEYS.replace("{sae}", "{sae}@{share}")
EXPLAINER_KEYS = CELL_KEYS + "/explainer={explainer}"
SCORER_KEYS = EXPLAINER_KEYS + "/scorer={scorer}"
RECIPE_KEYS = "subject={subject}/site={site}/sae={sae}"

RUN_CONFIG = "results/run_config.yaml"
# What each code hash of these results was made of, and which old hashes count as the current one.
CODE = "results/code.json"
ACCEPTED = "results/accepted.json"

CORPUS = "results/corpus/corpus={corpus}"
CORPUS_MANIFEST = CORPUS + "/split={split}/manifest.json"
CORPUS_TOKENS = CORPUS + "/split={split}/tokens.safetensors"
TOKENIZER = CORPUS + "/tokenizer"
TOKENIZER_FILE = TOKENIZER + "/tokenizer.json"

MODEL = "results/models/" + MODEL_KEYS
RECIPE = MODEL + "/recipe.json"
GATES = MODEL + "/gates.json"
MODEL_TABLE = MODEL + "/model.parquet"

ACTIVATIONS = "results/activations/" + SPLIT_KEYS
ACTIVATIONS_MANIFEST = ACTIVATIONS + "/manifest.json"
PORTION_KEYS = SPLIT_KEYS + "/portion={portion}-of-{portions}"
ACTIVATIONS_PORTION = ACTIVATIONS + "/portion-{portion}-of-{portions}.json"
SITE = ACTIVATIONS + "/site={site}"

SAE = "results/saes/" + CELL_KEYS
SAE_WEIGHTS = SAE + "/sae.safetensors"
SAE_CONFIG = SAE + "/cfg.json"
HISTORY = SAE + "/history.parquet"
TAKEN = "results/saes/" + CHECKPOINT_KEYS
TAKEN_WEIGHTS = TAKEN + "/sae.safetensors"
TAKEN_CONFIG = TAKEN + "/cfg.json"
TAKEN_HISTORY = TAKEN + "/history.parquet"

METRICS = "results/metrics/" + CELL_KEYS
RECONSTRUCTION = METRICS + "/reconstruction.parquet"
DOCUMENTS = METRICS + "/documents.parquet"
GEOMETRY = METRICS + "/geometry.parquet"
# Copies of the three tables above, so that adding an SAE evaluates no other again.
EVALUATED = "results/work/evaluated"
CROSS_EVALUATION = METRICS + "/cross_evaluation.parquet"
# One table for all SAEs of a recipe at a site.
OVERLAP = "results/overlap/" + RECIPE_KEYS + "/overlap.parquet"

LATENT_FOLDER = "results/latents/" + CELL_KEYS
LATENTS = LATENT_FOLDER + "/latents.parquet"
COVERAGE = LATENT_FOLDER + "/coverage.parquet"
WINDOWS = LATENT_FOLDER + "/windows.parquet"
FIRINGS = LATENT_FOLDER + "/firings.safetensors"
# Copies of these four, if one job collects for all SAEs of a model.
COLLECTED = "results/work/collected"

EXPLANATIONS = "results/explanations/" + EXPLAINER_KEYS + "/explanations.parquet"
# Tables of one job's latents until they are joined; not part of the data set.
SHARD_OF_EXPLAINER = EXPLAINER_KEYS + "/shard={shard}"
SHARD_OF_SCORER = SCORER_KEYS + "/shard={shard}"
EXPLANATIONS_SHARD = "results/work/explanations/" + SHARD_OF_EXPLAINER + "/explanations.parquet"
PREDICTIONS_SHARD = "results/work/scores/" + SHARD_OF_SCORER + "/predictions.parquet"
SCORES_SHARD = "results/work/scores/" + SHARD_OF_SCORER + "/scores.parquet"
JUDGE = "results/judges/scorer={scorer}"
JUDGE_MANIFEST = JUDGE + "/manifest.json"
SCORES_FOLDER = "results/scores/" + SCORER_KEYS
PREDICTIONS = SCORES_FOLDER + "/predictions.parquet"
SCORES = SCORES_FOLDER + "/scores.parquet"

TOY_KEYS = "source={source}/data={data}/expansion={expansion}/seed={seed}"
TOY_SWEEP = "results/toy/sweeps/" + TOY_KEYS + "/sweep.parquet"
TOY_TABLE = "results/toy/toy.parquet"
TOY_PAGE = "results/toy/index.html"

TABLE = "results/tables/{table}.parquet"
# The study's answer, from all tables.
ANSWER = "results/tables/answer.json"
FIGURE = "results/figures/{figure}.{format}"
REPORT = "results/report/index.html"
LOG = "results/logs/{rule}/{keys}.log"
BENCHMARK = "results/benchmarks/{rule}/{keys}.tsv"
# A job's use of language models, next to its benchmark file.
ASKED = "results/benchmarks/{rule}/{keys}.asked.json"
COSTS = "results/benchmarks/costs.parquet"
# All provenance; each artifact also has its own `provenance.json` (core/provenance.py).
PROVENANCE = "results/benchmarks/provenance.parquet"
WORK = "results/work"
# Batches that an endpoint is working on; a killed job finds its own here when it runs again.
BATCHES = "results/work/batches"


def partition_keys(path: Path | str) -> dict[str, str]:
    """Return the `key=value` folders of a path as a dictionary, in path order."""
    pairs = (part.partition("=") for part in Path(path).parent.parts if "=" in part)
    return {key: value for key, _, value in pairs}
