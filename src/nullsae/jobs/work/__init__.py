"""What each job computes, moves and writes: one formula per rule, in the table `WORK`.

All formulas, their sources and what they leave out stand in `docs/plan.md`.
"""

from __future__ import annotations

from collections.abc import Callable

from nullsae.jobs.grid import Keys
from nullsae.jobs.work.amounts import SizedStudy, Work
from nullsae.jobs.work.making import (
    cache_activations,
    capture_portion,
    prepare_corpus,
    randomize_model,
    sample_gaussian,
    take_checkpoint,
    train_sae,
    train_subject,
)
from nullsae.jobs.work.measuring import (
    aggregate,
    collect_latents,
    cross_evaluate,
    evaluate_sae,
    explain_latents,
    explain_shard,
    match_dictionaries,
    prepare_judge,
    report,
    score_latents,
    score_shard,
)

# In the order in which data flows.
WORK: dict[str, Callable[[SizedStudy, Keys], Work]] = {
    "prepare_corpus": prepare_corpus,
    "train_subject": train_subject,
    "randomize_model": randomize_model,
    "capture_portion": capture_portion,
    "cache_activations": cache_activations,
    "sample_gaussian": sample_gaussian,
    "train_sae": train_sae,
    "take_checkpoint": take_checkpoint,
    "evaluate_sae": evaluate_sae,
    "cross_evaluate": cross_evaluate,
    "match_dictionaries": match_dictionaries,
    "collect_latents": collect_latents,
    "explain_shard": explain_shard,
    "explain_latents": explain_latents,
    "prepare_judge": prepare_judge,
    "score_shard": score_shard,
    "score_latents": score_latents,
    "aggregate": aggregate,
    "report": report,
}
# Rules that no study of SAEs needs: `snakemake toy` alone runs them, in minutes on one core.
NOT_PLANNED = ("toy", "train_toy", "report_toy")
