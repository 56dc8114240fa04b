"""The memory, run time and disk that a job requests, computed from its sizes.

Rules request these, and `nullsae plan` prints them. If the size of a subject, corpus or judge is
not known offline, jobs request the values in `OTHERWISE`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from nullsae.config.corpora import BuiltinSource, Corpus, FilesSource
from nullsae.config.model_size import known_size
from nullsae.config.study import Config
from nullsae.core.folders import matching
from nullsae.jobs.autointerp import asks
from nullsae.jobs.grid import Keys
from nullsae.jobs.work import WORK, job_work, rates
from nullsae.jobs.work.amounts import CorpusSize, SizedStudy, Work
from nullsae.jobs.work.measuring import n_shards

T = TypeVar("T")
# Resident bytes, with pages of libraries, after a verb has loaded all that it ever imports
# (`benchmarks/memory.py`); CUDA's share of the host's memory is added.
LIBRARIES = {
    **{"light": 205e6, "torch": 310e6, "optimizer": 390e6, "transformers": 490e6, "all": 540e6},
    "cuda": 3e9,
}
# How much more they are on a CPU if PyTorch contains code for GPUs; 150 MB of it are no file's.
FOR_GPUS = {"light": 0, "torch": 380e6, "optimizer": 350e6, "transformers": 420e6, "all": 420e6}
# Megabytes and minutes of a job whose sizes are unknown.
OTHERWISE = {
    **{"take_checkpoint": (1_000, 30), "report_toy": (2_000, 30), "train_toy": (4_000, 240)},
    "report": (4_000, 30),
    **dict.fromkeys(("explain_shard", "explain_latents"), (1_000, 120)),
    "derive_sae": (8_000, 120),
    **dict.fromkeys(("score_shard", "score_latents"), (1_000, 240)),
    "explain_and_score": (1_000, 30),
    **dict.fromkeys(("prepare_corpus", "train_subject", "aggregate"), (4_000, 60)),
    **dict.fromkeys(("randomize_model", "retrain_subject", "sample_gaussian"), (8_000, 60)),
    "match_dictionaries": (8_000, 60),
    **dict.fromkeys(("evaluate_sae", "cross_evaluate", "collect_latents"), (8_000, 120)),
    "prepare_judge": (8_000, 120),
    **dict.fromkeys(("capture_portion", "cache_activations", "train_sae"), (8_000, 240)),
}
# The same for a job that trains several SAEs, and for one that runs a judge.
SHARED_MEGABYTES, JUDGING_MEGABYTES = 16_000, 8_000
# Safety margins over the formulas.
MEMORY_MARGIN, DISK_MARGIN = 1.1, 1.1
# On a GPU: the allocator's cache, and CUDA's context and kernels.
GPU_MARGIN, GPU_CONTEXT_BYTES = 1.15, 1e9
# Runs took up to 1.6 times the plan of an idle machine (docs/plan.md); others are slower.
TIME_MARGIN, MIN_MINUTES = 3.0, 30
# Jobs that differ only in these keys request the same.
ALIKE = ("draw", "seed", "shard", "portion")
# Characters per token of a small vocabulary, and characters of the larger builtin corpus.
CHARACTERS_PER_TOKEN, BUILTIN_CHARACTERS = 3, 12_200_000


@cache
def _has_code_for_gpus() -> bool:
    """Return whether the PyTorch installed here can use GPUs; does not import it."""
    torch = find_spec("torch")
    folder = Path(torch.origin or "").parent / "lib" if torch else Path()
    return any((folder / f"libtorch_{kind}.so").is_file() for kind in ("cuda", "hip"))


@dataclass(frozen=True)
class Asked:
    """What a job requests at its first attempt."""

    megabytes: int
    minutes: int
    disk_megabytes: int
    gpu_megabytes: int
    """Memory of one GPU; 0 for a job without one, or of unknown size."""
    known: bool
    """Whether it is computed from sizes."""
    seconds: float | None = None
    """Time by the plan's formulas, on the reference CPU or an A100; None if sizes are unknown, or
    the job waits for an endpoint."""


class Needs:
    """What the jobs of a study request."""

    def __init__(self, config: Config) -> None:
        """Look up the sizes known without network access; the config's sites are resolved."""
        corpora = {name: known_corpus(corpus) for name, corpus in config.corpora.items()}
        sizes = {
            name: known_size(subject.source, config.corpora[subject.corpus])
            for name, subject in config.subjects.items()
        }
        judges = {
            name: known_size(scorer.model_in_job, next(iter(config.corpora.values())))
            for name, scorer in config.scorers.items()
            if scorer.model_in_job is not None
        }
        self._study = SizedStudy(config, _known(sizes), _known(corpora), _known(judges))
        self._device = rates.data_sheet_device("a100")
        self._found: dict[tuple[object, ...], Asked] = {}

    def asked(self, rule: str, cells: list[Keys]) -> Asked:
        """Return what a job requests.

        Args:
            rule: a rule of the workflow.
            cells: the job's keys; the keys of each SAE for a job that trains several.
        """
        key = (rule, *(tuple(i for i in cell.items() if i[0] not in ALIKE) for cell in cells))
        if key not in self._found:
            self._found[key] = self._work_out(rule, cells)
        return self._found[key]

    def seconds(self, rule: str, cells: list[Keys]) -> float | None:
        """Return `Asked.seconds` of a job; None if its rule is not of this workflow."""
        return self.asked(rule, cells).seconds if rule in OTHERWISE else None

    def _work_out(self, rule: str, cells: list[Keys]) -> Asked:
        keys, study = cells[0], self._study
        megabytes, minutes = self._otherwise(rule, cells)
        if not self._knows(rule, keys):
            return Asked(megabytes, minutes, 1_000, 0, known=False)
        work = job_work(study, rule, cells)
        joins = rule in ("explain_latents", "score_latents") and n_shards(study, keys) > 0
        if joins:
            work = Work(written_bytes=work.written_bytes)
        on_gpu = work.gpu and not study.on_cpu
        libraries = LIBRARIES[work.imports] + (LIBRARIES["cuda"] if on_gpu else 0.0)
        if not on_gpu and _has_code_for_gpus():
            libraries += FOR_GPUS[work.imports]
        disk = math.ceil((work.written_bytes + work.work_bytes) * DISK_MARGIN / 1e6)
        # The time of an endpoint's answers is unknown.
        whole = rule.replace("_shard", "_latents")
        asking = whole in ("explain_latents", "score_latents") and asks(study.config, whole, keys)
        seconds: float | None = None
        if joins or not asking:
            device = self._device if on_gpu else rates.REFERENCE_CPU
            seconds = rates.job_seconds(work, device, rates.REFERENCE_HOST)
            if not on_gpu:
                threads = study.config.compute.threads
                seconds = rates.wall_seconds(work, seconds, rates.REFERENCE_HOST, threads)
        if seconds is not None and not joins:
            minutes = max(MIN_MINUTES, math.ceil(seconds * TIME_MARGIN / 60))
        megabytes = math.ceil((libraries + work.held_bytes) * MEMORY_MARGIN / 1e7) * 10
        on_device = work.gpu_bytes * GPU_MARGIN + GPU_CONTEXT_BYTES
        gpu = math.ceil(on_device / 1e8) * 100 if on_gpu else 0
        return Asked(megabytes, minutes, disk, gpu, known=True, seconds=seconds)

    def _otherwise(self, rule: str, cells: list[Keys]) -> tuple[int, int]:
        megabytes, minutes = OTHERWISE[rule]
        if rule == "train_sae" and len(cells) > 1:
            return SHARED_MEGABYTES, minutes * len(cells)
        if rule in ("score_latents", "score_shard"):
            scorer = self._study.config.scorers[cells[0]["scorer"]]
            if scorer.model_in_job is not None:
                return JUDGING_MEGABYTES, minutes
        return megabytes, minutes

    def _knows(self, rule: str, keys: Keys) -> bool:
        """Return whether all sizes that a job's formulas need are known."""
        study = self._study
        if rule not in WORK:
            return False
        if rule in ("aggregate", "report"):
            return set(study.sizes) == set(study.config.subjects)
        scorer = keys.get("scorer")
        if scorer and study.config.scorers[scorer].model_in_job is not None:
            return scorer in study.judges
        if "subject" not in keys:
            return keys["corpus"] in study.corpora
        corpus = study.config.subjects[keys["subject"]].corpus
        return keys["subject"] in study.sizes and corpus in study.corpora


def n_gpus(config: Config, subject: str) -> int:
    """Return the number of GPUs of a job that computes with a subject."""
    if config.compute.device == "cpu":
        return 0
    return getattr(config.subjects[subject].source, "gpus", None) or 1


def _known(sizes: dict[str, T | None]) -> dict[str, T]:
    return {name: size for name, size in sizes.items() if size is not None}


def known_corpus(corpus: Corpus) -> CorpusSize | None:
    """Return the most tokens that a corpus can have, without reading it; None if unknown (hub)."""
    wanted = (corpus.sae_train_tokens, corpus.eval_tokens)
    source = corpus.source
    if isinstance(source, BuiltinSource):
        held = BUILTIN_CHARACTERS // CHARACTERS_PER_TOKEN
    elif isinstance(source, FilesSource):
        files = {file for pattern in source.paths for file in matching(pattern)}
        held = sum(file.stat().st_size for file in files) // CHARACTERS_PER_TOKEN
    elif None in wanted:
        return None
    else:
        share = (1 - corpus.eval_share, corpus.eval_share)
        read = max((n or 0) / part for n, part in zip(wanted, share, strict=True))
        return CorpusSize(wanted[0] or 0, wanted[1] or 0, int(read), counted=False)
    train, heldout = (held if n is None else n for n in wanted)
    if corpus.eval_tokens is None:
        heldout = math.ceil(held * min(1.0, 2 * corpus.eval_share))
    return CorpusSize(train, heldout, held, counted=False)
