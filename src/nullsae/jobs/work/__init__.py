"""Estimates of each job's compute, memory traffic, disk and memory: one formula per rule in `WORK`.

`docs/plan.md` has all formulas, their sources and what they leave out.
"""

from __future__ import annotations

from collections.abc import Callable

from nullsae.jobs.grid import Keys
from nullsae.jobs.work import latents, making, measuring
from nullsae.jobs.work.amounts import SizedStudy, Work

# In the order of the data flow.
_FORMULAS: tuple[Callable[[SizedStudy, Keys], Work], ...] = (
    *(making.prepare_corpus, making.train_subject, making.retrain_subject, making.randomize_model),
    *(making.capture_portion, making.cache_activations, making.sample_gaussian),
    *(making.train_sae, making.derive_sae, making.take_checkpoint),
    *(measuring.evaluate_sae, measuring.cross_evaluate, measuring.match_dictionaries),
    *(latents.collect_latents, measuring.explain_shard, measuring.explain_latents),
    *(measuring.prepare_judge, measuring.score_shard, measuring.score_latents),
    *(measuring.explain_and_score, measuring.aggregate, measuring.report),
)
WORK = {formula.__name__: formula for formula in _FORMULAS}
# Rules whose jobs make several things: formulas of the keys of all.
JOINT: dict[str, Callable[[SizedStudy, list[Keys]], Work]] = {
    "train_sae": making.train_saes,
    "evaluate_sae": measuring.evaluate_saes,
    "collect_latents": latents.collect_latents_of_all,
    "explain_and_score": measuring.explain_and_scores,
}
# Rules that no study of SAEs needs: only `snakemake toy` runs them, in minutes on one core.
NOT_PLANNED = ("toy", "train_toy", "report_toy")


def job_work(study: SizedStudy, rule: str, cells: list[Keys]) -> Work:
    """Return the work of a job that makes all of these cells."""
    return JOINT[rule](study, cells) if rule in JOINT else WORK[rule](study, cells[0])
