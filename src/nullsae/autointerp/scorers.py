"""Scores of explanations: how well a judge who has one tells active windows from silent ones.

The judge is a formula that reads an explanation's token statistics (`token_judge`), a language
model that is asked (`asking`), or one whose likelihoods are compared (`likelihood`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nullsae.autointerp.classification import classification_scores
from nullsae.autointerp.examples import Examples, Floats, examples_of, with_marks
from nullsae.autointerp.explainers import load_tokenizer
from nullsae.autointerp.llm.session import Asked
from nullsae.autointerp.shards import Ranks, of_latents
from nullsae.autointerp.token_judge import judge_by_tokens
from nullsae.config.compute import Compute
from nullsae.config.scorers import DetectionScorer, FuzzingScorer, IntruderScorer, LikelihoodScorer
from nullsae.core.errors import UserError
from nullsae.jobs.autointerp import ScoreLatentsParams
from nullsae.tables import cell_schema, read_table, write_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """What a judge said of each example."""

    probability: Floats
    """Of being active, [n_examples]; NaN where no valid reply came."""
    evidence: list[str | None]
    """statistics, logprobs, label or likelihood, [n_examples]; None where no reply came."""
    judge: str | None = None
    """The language model."""
    prompt_hash: str | None = None


def score_latents(
    params: ScoreLatentsParams,
    *,
    windows: Path,
    predictions: Path,
    scores: Path,
    explanations: Path | None = None,
    tokenizer: Path | None = None,
    judge: Path | None = None,
    asked: Asked | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Judge the scoring windows of each explained latent; write predictions and scores.

    Args:
        params: the rule's params.
        windows: the SAE's table `windows`.
        predictions: where the table `predictions` goes, sorted by (latent, window).
        scores: where the table `scores` goes, sorted by latent.
        explanations: one explainer's table `explanations`; none for `intruder`.
        tokenizer: `tokenizer.json` of the corpus, where a language model reads the windows.
        judge: manifest of the model of a scorer that runs it itself.
        asked: how endpoints are asked, and what is reported of it.
        ranks: judge these of the sampled latents only; `join_shards` makes one table of all.

    Raises:
        UserError: a file is missing or damaged, or an endpoint cannot be used.
    """
    scorer = params.scorer
    table = read_table(windows, cell_schema("windows"))
    table = ranks.take(table) if ranks else table
    # One SAE without such latents must not stop a study of many; `aggregate` stops where all are.
    if not table.num_rows and ranks is None:
        log.warning("%s: no latent passes the filter, so no scores", windows)
    if isinstance(scorer, IntruderScorer):
        explained = pa.table({"latent": np.unique(table["latent"].to_numpy())})
    else:
        if explanations is None:
            raise UserError(f"{scores}: a scorer of kind {scorer.kind} needs --explanations")
        explained = read_table(explanations, cell_schema("explanations")).sort_by("latent")
        if ranks is not None:
            explained = of_latents(explained, np.unique(table["latent"].to_numpy()))
        if not explained.num_rows and ranks is None:
            log.warning("%s: no explanations, so no scores", explanations)
    examples = examples_of(table, explained["latent"], negatives=scorer.negatives, source=windows)
    is_detection = isinstance(scorer, LikelihoodScorer) and scorer.form == "detection"
    if not isinstance(scorer, DetectionScorer) and not is_detection and len(examples.latent):
        keys = params.keys.parts()
        examples = with_marks(examples, scorer.mark_threshold, scorer.negatives, params.seed, *keys)
    examples, judged = _judge(params, examples, explained, tokenizer, judge, asked or Asked())
    rows = [
        {
            "latent": latent,
            **classification_scores(examples.active[mine], judged.probability[mine]),
            "n_labels": sum(judged.evidence[i] == "label" for i in np.flatnonzero(mine)),
            "judge": judged.judge,
            "prompt_hash": judged.prompt_hash,
        }
        for latent in explained["latent"].to_pylist()
        for mine in [examples.latent == latent]
    ]
    write_table(predictions, predictions_table(examples, judged), cell_schema("predictions"))
    write_table(scores, rows, cell_schema("scores"))


def _judge(
    params: ScoreLatentsParams,
    examples: Examples,
    explained: pa.Table,
    tokenizer: Path | None,
    judge: Path | None,
    asked: Asked,
) -> tuple[Examples, Judged]:
    """The examples that were judged, and what was said of them."""
    scorer = params.scorer
    reads_text = params.judge is not None or isinstance(scorer, LikelihoodScorer)
    if not reads_text:
        if isinstance(scorer, IntruderScorer):
            raise UserError("--params: judge is missing, and scorer.kind intruder asks one")
        if explained["base_probability"].null_count:
            raise UserError(
                "--params: judge is missing, and these explanations are text without statistics"
            )
        shown = examples.marked if isinstance(scorer, FuzzingScorer) else None
        if not len(examples.latent):
            return examples, Judged(np.empty(0), [])
        probability = judge_by_tokens(
            examples, explained, np.ones_like(examples.marked) if shown is None else shown
        )
        return examples, Judged(probability, ["statistics"] * len(probability))
    if tokenizer is None:
        raise UserError(
            f"--tokenizer: missing; a judge of kind {scorer.kind} reads windows as text"
        )
    text = load_tokenizer(tokenizer)
    # Lazy: the formula needs neither a client nor torch.
    if isinstance(scorer, LikelihoodScorer):
        from nullsae.autointerp.likely import judge_by_likelihood

        if judge is None:
            raise UserError("--judge: missing; a scorer of kind likelihood runs a model itself")
        compute = params.compute or Compute()
        probability, name, prompt_hash = judge_by_likelihood(
            scorer, examples, explained, text, judge, compute, asked
        )
        evidence = [None if np.isnan(p) else "likelihood" for p in probability]
        return examples, Judged(probability, evidence, name, prompt_hash)
    from nullsae.autointerp.asking import ask_about_windows, ask_for_intruders

    assert params.judge is not None
    if isinstance(scorer, IntruderScorer):
        chosen, answers, prompt_hash = ask_for_intruders(
            params, scorer, examples, text, params.judge, asked
        )
        examples = examples.take(chosen)
    else:
        answers, prompt_hash = ask_about_windows(
            params, scorer, examples, explained, text, params.judge, asked
        )
    probability = np.array([np.nan if a is None else a.probability for a in answers], np.float64)
    evidence = [None if a is None else "label" if a.is_label else "logprobs" for a in answers]
    return examples, Judged(probability, evidence, params.judge.model, prompt_hash)


def predictions_table(examples: Examples, judged: Judged) -> pa.Table:
    """The columns of the table `predictions`; a NaN probability becomes null."""
    n_examples = len(examples.latent)
    return pa.table(
        {
            "latent": examples.latent,
            "window": examples.window,
            "active": examples.active,
            "silent_kind": examples.silent_kind,
            "quantile": examples.quantile,
            "n_marked": examples.n_marked if n_examples else np.empty(0, np.int64),
            "probability": pa.array(judged.probability, mask=np.isnan(judged.probability)),
            "evidence": pa.array(judged.evidence, pa.string()),
        }
    )
