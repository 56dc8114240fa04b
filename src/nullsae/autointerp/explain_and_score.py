"""Explanations and scores without an endpoint, for all SAEs of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.score import score_latents
from nullsae.config.study import NO_EXPLAINER
from nullsae.jobs.autointerp import (
    ExplainAndScoreParams,
    ExplainLatentsParams,
    ScoreLatentsParams,
)


def explain_and_score(
    params: ExplainAndScoreParams,
    *,
    windows: str,
    tokenizer: Path,
    explanations: str,
    scores: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write each explainer's explanations, then each scorer's predictions and scores.

    The files equal those that `explain_latents` and `score_latents` write one at a time.

    Args:
        params: the rule's slice of the config.
        windows: path of each SAE's table `windows`, a template for {site}, {sae} and {seed}.
        tokenizer: `tokenizer.json` of the corpus.
        explanations: path of the tables `explanations`, including those that are exchanged; also a
            template for {explainer}.
        scores: folder of the tables `predictions` and `scores`; also a template for {scorer}.
        progress: called with (tables done, tables in total).

    Raises:
        UserError: a file is missing or damaged.
    """
    done, total = 0, len(params.cells) * (len(params.explainers) + len(params.scorers))
    for cell in params.cells:
        own, keys = cell.model_dump(), params.cell_keys(cell)
        shown = Path(windows.format(**own))
        for name, explainer in params.explainers.items():
            base = explainer.exchanges
            explain_latents(
                ExplainLatentsParams(seed=params.seed, keys=keys, explainer=explainer),
                shown,
                tokenizer,
                Path(explanations.format(**own, explainer=name)),
                None if base is None else Path(explanations.format(**own, explainer=base)),
            )
            progress(done := done + 1, total)
        for judging in params.scorers:
            named = {**own, "explainer": judging.explainer, "scorer": judging.name}
            explained = judging.explainer != NO_EXPLAINER
            score_latents(
                ScoreLatentsParams(seed=params.seed, keys=keys, scorer=judging.scorer),
                windows=shown,
                explanations=Path(explanations.format(**named)) if explained else None,
                tokenizer=tokenizer,
                predictions=Path(scores.format(**named)) / "predictions.parquet",
                scores=Path(scores.format(**named)) / "scores.parquet",
            )
            progress(done := done + 1, total)
