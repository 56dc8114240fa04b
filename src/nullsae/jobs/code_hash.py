"""Which modules each rule runs, and a hash of their text.

Snakemake does not see a change inside an imported package. The hash stands in each rule's
params: an edit re-runs the stage that owns the module, and what depends on its output.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# A rule owns the modules that decide what it computes. What another rule made for it (tokens,
# weights, shards) changes through that rule's own hash. A module that one rule names is not
# another's that names its folder.
OWNED: dict[str, tuple[str, ...]] = {
    "prepare_corpus": ("corpus",),
    "train_subject": (
        "core/moments.py",
        "subjects/training.py",
        "subjects/health.py",
        "subjects/publish.py",
        "subjects/variants",
        "subjects/loading.py",
        "subjects/families.py",
        "subjects/gates.py",
    ),
    "randomize_model": (
        "core/moments.py",
        "subjects/changes.py",
        "subjects/health.py",
        "subjects/orthogonal.py",
        "subjects/publish.py",
        "subjects/randomize.py",
        "subjects/variants",
        "subjects/loading.py",
        "subjects/families.py",
        "subjects/gates.py",
    ),
    "cache_activations": (
        "activations/capture.py",
        "activations/shards.py",
        "activations/store.py",
    ),
    "sample_gaussian": (
        "activations/gaussian.py",
        "activations/shards.py",
        "activations/store.py",
        "core/moments.py",
    ),
    "train_sae": ("activations/blocks.py", "activations/live.py", "core/moments.py", "sae"),
    "take_checkpoint": ("sae/checkpoints.py",),
    "evaluate_sae": (
        "metrics/ce_score.py",
        "metrics/evaluate.py",
        "metrics/fidelity.py",
        "metrics/geometry.py",
        "core/moments.py",
        "metrics/reconstruction.py",
        "metrics/token_lookup.py",
    ),
    "cross_evaluate": ("metrics/cross.py", "metrics/reconstruction.py"),
    "match_dictionaries": ("metrics/geometry.py", "metrics/overlap.py"),
    "collect_latents": (
        "latents/__init__.py",
        "latents/collect.py",
        "latents/describe.py",
        "latents/sample.py",
        "latents/silent.py",
        "latents/split.py",
        "latents/statistics.py",
        "latents/store.py",
        "latents/windows.py",
    ),
    "explain_latents": (
        "autointerp/examples.py",
        "autointerp/explain.py",
        "autointerp/explainers",
        "autointerp/marking.py",
        "autointerp/prompting.py",
        "autointerp/replies.py",
        "autointerp/shards.py",
        "autointerp/prompts/explain.txt",
        "corpus/token_text.py",
    ),
    "prepare_judge": ("autointerp/local_model.py",),
    "score_latents": (
        "autointerp/classification.py",
        "autointerp/examples.py",
        # Replies are kept by what was asked, so running again after an edit of it costs no call.
        "autointerp/llm",
        "autointerp/log_odds.py",
        "autointerp/marking.py",
        "autointerp/prompting.py",
        "autointerp/prompts",
        "autointerp/replies.py",
        "autointerp/score.py",
        "autointerp/scorers",
        "autointerp/shards.py",
        "autointerp/token_statistics.py",
    ),
    "aggregate": ("statistics", "aggregation", "metrics/catalogue", "metrics/ce_score.py"),
    # Texts and looks of variants stand with the variants.
    "report": ("metrics/catalogue", "report", "subjects/variants"),
    "train_toy": (
        "core/moments.py",
        "toy/data.py",
        "toy/measures.py",
        "toy/sweep.py",
        "toy/training.py",
    ),
    "report_toy": ("toy/charts.py", "toy/page.py", "toy/templates"),
}
# Modules that carry no results: wiring, checks of input, file formats' containers.
SHARED = (
    "__init__.py",
    "activations/__init__.py",
    "activations/preflight.py",
    "metrics/__init__.py",
    "subjects/__init__.py",
    "autointerp/__init__.py",
    "autointerp/llm/serve_gguf.py",
    "autointerp/llm/session.py",
    "cli",
    "config",
    "core",
    "fetching",
    "jobs",
    "latents/exports/__init__.py",
    "latents/exports/cell.py",
    "latents/exports/delphi.py",
    "latents/exports/neuronpedia.py",
    "paths.py",
    "planning",
    "py.typed",
    "tables",
    "toy/__init__.py",
)


def modules(rule: str) -> list[Path]:
    """The files that a rule owns, sorted: Python, templates, prompts."""
    named = {PACKAGE / name for names in OWNED.values() for name in names}
    found: set[Path] = set()
    for path in (PACKAGE / name for name in OWNED[rule]):
        inside = set(path.rglob("*")) - named if path.is_dir() else [path]
        found.update(f for f in inside if f.is_file() and "__pycache__" not in f.parts)
    return sorted(found)


@cache
def code_hash(rule: str) -> str:
    """16 hex digits over the names and bytes of the rule's modules."""
    digest = hashlib.blake2b(digest_size=8)
    for path in modules(rule):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()
