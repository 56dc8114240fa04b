"""Verbs about single latents: collect, explain, score."""

from __future__ import annotations

import typer

from nullsae.cli.options import (
    Captured,
    Costs,
    Manifest,
    Output,
    Params,
    SaeFile,
    SomeBase,
    SomeExplanations,
    SomeJudge,
    SomeRanks,
    SomeRunConfig,
    SomeShards,
    Table,
    Tokenizer,
    Verb,
    Windows,
    read_params,
    session_of,
)
from nullsae.core.progress import bar

verbs = typer.Typer()


@verbs.command("collect_latents", cls=Verb)
def collect_latents(
    params: Params,
    sae: SaeFile,
    activations: Captured,
    tokens: Manifest,
    latents: Table,
    windows: Table,
    coverage: Table,
    firings: Output,
) -> None:
    """Describe every latent; cut the windows of a random sample of them."""
    from nullsae.jobs.latents import CollectLatentsParams
    from nullsae.latents.collect import collect_latents

    with bar("collect_latents", "tokens") as progress:
        collect_latents(
            read_params(CollectLatentsParams, params),
            sae=sae,
            activations=activations,
            tokens=tokens,
            latents=latents,
            windows=windows,
            coverage=coverage,
            firings=firings,
            progress=progress,
        )


@verbs.command("explain_latents", cls=Verb)
def explain_latents(
    params: Params,
    windows: Windows,
    tokenizer: Tokenizer,
    output: Table,
    base: SomeBase = None,
    run_config: SomeRunConfig = None,
    costs: Costs = None,
    ranks: SomeRanks = None,
    shard: SomeShards = None,
) -> None:
    """Write an explanation of each sampled latent."""
    from nullsae.autointerp.explain import explain_latents
    from nullsae.autointerp.shards import Ranks, join_shards
    from nullsae.jobs.autointerp import ExplainLatentsParams

    if shard:
        join_shards([folder / output.name for folder in shard], "explanations", output)
        return
    with bar("explain_latents", "latents") as progress:
        explain_latents(
            read_params(ExplainLatentsParams, params),
            windows=windows,
            tokenizer=tokenizer,
            output=output,
            base=base,
            session=session_of(run_config, costs, progress),
            ranks=Ranks.parse(ranks) if ranks else None,
        )


@verbs.command("prepare_judge", cls=Verb)
def prepare_judge(params: Params, output: Output) -> None:
    """Fetch or convert the model that a scorer runs itself."""
    from nullsae.autointerp.local_model import prepare_judge
    from nullsae.jobs.autointerp import PrepareJudgeParams

    prepare_judge(read_params(PrepareJudgeParams, params), output)


@verbs.command("score_latents", cls=Verb)
def score_latents(
    params: Params,
    windows: Windows,
    tokenizer: Tokenizer,
    predictions: Table,
    scores: Table,
    explanations: SomeExplanations = None,
    judge: SomeJudge = None,
    run_config: SomeRunConfig = None,
    costs: Costs = None,
    ranks: SomeRanks = None,
    shard: SomeShards = None,
) -> None:
    """Judge windows by the explanations; score each latent."""
    from nullsae.autointerp.score import score_latents
    from nullsae.autointerp.shards import Ranks, join_shards
    from nullsae.jobs.autointerp import ScoreLatentsParams

    if shard:
        for table, output in (("predictions", predictions), ("scores", scores)):
            join_shards([folder / output.name for folder in shard], table, output)
        return
    with bar("score_latents", "questions") as progress:
        score_latents(
            read_params(ScoreLatentsParams, params),
            windows=windows,
            explanations=explanations,
            tokenizer=tokenizer,
            judge=judge,
            predictions=predictions,
            scores=scores,
            session=session_of(run_config, costs, progress),
            ranks=Ranks.parse(ranks) if ranks else None,
        )
