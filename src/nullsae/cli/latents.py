"""Verbs about single latents: collect, explain, score."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from nullsae.cli import options
from nullsae.cli.job import job

verbs = typer.Typer()


@verbs.command("collect_latents", cls=options.Verb)
def collect_latents(
    params: options.Params,
    sae: options.SaeFile,
    activations: options.Captured,
    tokens: options.Manifest,
    latents: options.Table,
    windows: options.Table,
    coverage: options.Table,
    firings: options.Output,
    model: options.SomeRecipe = None,
    kept: options.Kept = None,
    code: options.KeptCode = "",
) -> None:
    """Describe every latent, and cut windows for a random sample of them.

    Of several SAEs, {site}, {sae} and {seed} in paths are filled in.
    """
    from nullsae.core.kept import Kept
    from nullsae.jobs.latents import CollectLatentsParams
    from nullsae.latents.collect_all import collect_all

    given = options.read_params(CollectLatentsParams, params)
    reads, makes = (sae, activations, tokens), (latents, windows, coverage, firings)
    with job("collect_latents", "tokens", given, reads=reads, makes=makes) as progress:
        collect_all(
            given,
            sae=sae,
            activations=activations,
            tokens=tokens,
            model=model,
            latents=latents,
            windows=windows,
            coverage=coverage,
            firings=firings,
            kept=Kept(kept, code) if kept else None,
            progress=progress,
        )


@verbs.command("explain_latents", cls=options.Verb)
def explain_latents(
    params: options.Params,
    windows: options.Windows,
    tokenizer: options.Tokenizer,
    output: options.Table,
    base: options.SomeBase = None,
    llm: options.SomeLlm = None,
    costs: options.Costs = None,
    ranks: options.SomeRanks = None,
    shard: options.SomeShards = None,
) -> None:
    """Write an explanation of each sampled latent."""
    from nullsae.autointerp.explain import explain_latents
    from nullsae.autointerp.shards import Ranks, join_shards
    from nullsae.jobs.autointerp import ExplainLatentsParams

    if shard:
        files = [folder / output.name for folder in shard]
        with job("explain_latents", "files", makes=[output], parts=files):
            join_shards(files, "explanations", output)
        return
    given = options.read_params(ExplainLatentsParams, params)
    with job("explain_latents", "latents", given, reads=[windows], makes=[output]) as progress:
        explain_latents(
            given,
            windows=windows,
            tokenizer=tokenizer,
            output=output,
            base=base,
            session=options.session_of(llm, costs, progress),
            ranks=Ranks.parse(ranks) if ranks else None,
        )


@verbs.command("explain_and_score", cls=options.Verb)
def explain_and_score(
    params: options.Params,
    windows: Annotated[str, Option(help="windows.parquet; {site}, {sae}, {seed} are filled in.")],
    tokenizer: options.Tokenizer,
    explanations: Annotated[
        str, Option(help="explanations.parquet; {explainer} is filled in too.")
    ],
    scores: Annotated[str, Option(help="Folder of each SAE's scores; {scorer} is filled in too.")],
) -> None:
    """Explain and score the latents of a model's SAEs without a language model."""
    from nullsae.autointerp.explain_and_score import explain_and_score
    from nullsae.jobs.autointerp import ExplainAndScoreParams

    given, makes = options.read_params(ExplainAndScoreParams, params), (explanations, scores)
    with job("explain_and_score", "tables", given, reads=[tokenizer], makes=makes) as progress:
        explain_and_score(
            given,
            windows=windows,
            tokenizer=tokenizer,
            explanations=explanations,
            scores=scores,
            progress=progress,
        )


@verbs.command("prepare_judge", cls=options.Verb)
def prepare_judge(params: options.Params, output: options.Output) -> None:
    """Fetch or convert the model that a scorer runs itself."""
    from nullsae.autointerp.local_model import prepare_judge
    from nullsae.jobs.autointerp import PrepareJudgeParams

    given = options.read_params(PrepareJudgeParams, params)
    with job("prepare_judge", "files", given, makes=[output]):
        prepare_judge(given, output)


@verbs.command("score_latents", cls=options.Verb)
def score_latents(
    params: options.Params,
    windows: options.Windows,
    tokenizer: options.Tokenizer,
    predictions: options.Table,
    scores: options.Table,
    explanations: options.SomeExplanations = None,
    judge: options.SomeJudge = None,
    llm: options.SomeLlm = None,
    costs: options.Costs = None,
    ranks: options.SomeRanks = None,
    shard: options.SomeShards = None,
) -> None:
    """Judge windows by the explanations, and score each latent."""
    from nullsae.autointerp.score import score_latents
    from nullsae.autointerp.shards import Ranks, join_shards
    from nullsae.jobs.autointerp import ScoreLatentsParams

    makes = (predictions, scores)
    if shard:
        files = [folder / scores.name for folder in shard]
        with job("score_latents", "files", makes=makes, parts=files):
            for table, output in (("predictions", predictions), ("scores", scores)):
                join_shards([folder / output.name for folder in shard], table, output)
        return
    given = options.read_params(ScoreLatentsParams, params)
    reads = (windows, explanations)
    with job("score_latents", "questions", given, reads=reads, makes=makes) as progress:
        score_latents(
            given,
            windows=windows,
            explanations=explanations,
            tokenizer=tokenizer,
            judge=judge,
            predictions=predictions,
            scores=scores,
            session=options.session_of(llm, costs, progress),
            ranks=Ranks.parse(ranks) if ranks else None,
        )
