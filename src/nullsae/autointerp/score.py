"""Scores of explanations: how well a judge with one tells active windows from silent ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nullsae.autointerp.classification import classification_scores
from nullsae.autointerp.examples import Examples, Flags, Floats, examples_of, with_marks
from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.llm.session import Session
from nullsae.autointerp.shards import Ranks, of_latents
from nullsae.core.errors import UserError
from nullsae.corpus.token_text import read_tokenizer
from nullsae.jobs.autointerp import ExplainLatentsParams, ScoreLatentsParams
from nullsae.tables import cell_schema, read_table, write_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """What a judge said about each example."""

    probability: Floats
    """Of being active, [n_examples]; NaN without a valid reply."""
    evidence: list[str | None]
    """statistics, logprobs, label or likelihood, [n_examples]; None without a reply."""
    judge: str | None = None
    """The language model."""
    prompt_hash: str | None = None
    examples: Examples | None = None
    """What was judged, sorted, if different from the job's examples."""
    placebo: Floats | None = None
    """Probabilities from a judge who knows nothing about the latent, [n_examples]."""
    metrics: Mapping[int, Mapping[str, float]] | None = None
    """Columns of `scores` that need no windows, by latent."""


@dataclass(frozen=True)
class ScoreJob:
    """What a scorer judges, and what it may use."""

    params: ScoreLatentsParams
    examples: Examples
    """Windows, marked if the scorer shows marks."""
    explained: pa.Table
    """The table `explanations`, sorted by latent; only its column `latent` for a scorer that needs
    no explanations."""
    session: Session
    tokenizer_file: Path | None = None
    """`tokenizer.json` of the corpus."""
    model: Path | None = None
    """Manifest of the model that the job runs itself, written by `prepare_judge`."""
    windows_file: Path | None = None
    """The SAE's table `windows`."""

    @cached_property
    def n_latents(self) -> int:
        """Number of the SAE's latents; a `UserError` if `coverage` is missing or damaged."""
        assert self.windows_file is not None
        file = self.windows_file.with_name("coverage.parquet")
        (found,) = read_table(file, cell_schema("coverage"), columns=["n_latents"])["n_latents"]
        return int(found.as_py())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer; a `UserError` if the file is missing or damaged."""
        if self.tokenizer_file is None:
            kind = self.params.scorer.name
            raise UserError(f"--tokenizer: missing; a judge of kind {kind} reads windows as text")
        return read_tokenizer(self.tokenizer_file)


def score_latents(
    params: ScoreLatentsParams,
    *,
    windows: Path,
    predictions: Path,
    scores: Path,
    explanations: Path | None = None,
    tokenizer: Path | None = None,
    judge: Path | None = None,
    session: Session | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Judge the scoring windows of each explained latent; write predictions and scores.

    Predictions are sorted by (latent, window), scores by latent. With `ranks`, only those sampled
    latents of `windows` and `explanations` are judged; `join_shards` joins the tables. Not every
    scorer needs `explanations`. Explainers in the params explain first, and then `explanations` is
    what they exchange. The manifest `judge` is the `model` of `ScoreJob`. A `UserError` names a
    missing or damaged file, or says why an endpoint cannot be used.
    """
    scorer = params.scorer
    table = read_table(windows, cell_schema("windows"))
    table = ranks.take(table) if ranks else table
    # One SAE without such latents must not stop a study; `aggregate` stops if no SAE has any.
    if not table.num_rows and ranks is None:
        log.warning("%s: no latent passes the filter, so no scores", windows)
    if not scorer.needs_explanations:
        explained = pa.table({"latent": np.unique(table["latent"].to_numpy())})
    else:
        explained = _explanations(params, windows, tokenizer, explanations, scores)
        if ranks is not None:
            explained = of_latents(explained, np.unique(table["latent"].to_numpy()))
        if not explained.num_rows and ranks is None:
            log.warning("%s: no explanations, so no scores", explanations)
    examples = examples_of(table, explained["latent"], negatives=scorer.negatives, source=windows)
    if scorer.marks_above is not None and len(examples.latent):
        keys = params.keys.parts()
        examples = with_marks(examples, scorer.marks_above, scorer.negatives, params.seed, *keys)
    job = ScoreJob(params, examples, explained, session or Session(), tokenizer, judge, windows)
    judged = scorer.predict(job)
    if judged.examples is not None:
        examples = judged.examples
    rows = [
        {
            "latent": latent,
            **classification_scores(examples.active[mine], judged.probability[mine]),
            "placebo_auroc": _placebo_auroc(examples, judged, mine),
            **(judged.metrics or {}).get(latent, {}),
            "n_labels": sum(judged.evidence[i] == "label" for i in np.flatnonzero(mine)),
            "judge": judged.judge,
            "prompt_hash": judged.prompt_hash,
        }
        for latent in explained["latent"].to_pylist()
        for mine in [examples.latent == latent]
    ]
    write_table(predictions, predictions_table(examples, judged), cell_schema("predictions"))
    write_table(scores, rows, cell_schema("scores"))


def _explanations(
    params: ScoreLatentsParams,
    windows: Path,
    tokenizer: Path | None,
    explanations: Path | None,
    scores: Path,
) -> pa.Table:
    """Return the table `explanations`, sorted by latent: as given, or from the job's explainers.

    Explainers explain all latents, even if only some are judged, as in their own job.
    """
    schema = cell_schema("explanations")
    with TemporaryDirectory() as folder:
        for index, explainer in enumerate(params.explainers):
            if tokenizer is None:
                raise UserError(
                    f"--tokenizer: missing; {explainer.name} explains the latents first"
                )
            own = ExplainLatentsParams(seed=params.seed, keys=params.keys, explainer=explainer)
            output = Path(folder) / f"{index}.parquet"
            explain_latents(own, windows, tokenizer, output, base=explanations)
            explanations = output
        if explanations is None:
            raise UserError(f"{scores}: a scorer of kind {params.scorer.name} needs --explanations")
        return read_table(explanations, schema).sort_by("latent")


def _placebo_auroc(examples: Examples, judged: Judged, mine: Flags) -> float | None:
    """Return the AUROC of the placebo's judgements of windows with a valid reply."""
    if judged.placebo is None:
        return None
    rows = mine & ~np.isnan(judged.probability)
    auroc: float | None = classification_scores(examples.active[rows], judged.placebo[rows])[
        "auroc"
    ]
    return auroc


def predictions_table(examples: Examples, judged: Judged) -> pa.Table:
    """Return the columns of the table `predictions`; a NaN probability becomes null."""
    same = ("latent", "window", "document", "active", "silent_kind", "quantile", "n_marked")
    return pa.table(
        {name: getattr(examples, name) for name in same}
        | {
            "probability": pa.array(judged.probability, mask=np.isnan(judged.probability)),
            "evidence": pa.array(judged.evidence, pa.string()),
        }
    )
