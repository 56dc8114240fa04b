"""Verbs that make SAEs and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nullsae import paths
from nullsae.cli.options import (
    Captured,
    Manifest,
    ManyCaptured,
    Output,
    Params,
    SaeFile,
    SomeFitted,
    SomeRecipe,
    SomeTokens,
    Table,
    Verb,
    Work,
    read_params,
)
from nullsae.core.progress import bar

verbs = typer.Typer()


@verbs.command("train_sae", cls=Verb)
def train_sae(
    params: Params,
    train_activations: Captured,
    eval_activations: Captured,
    output: Annotated[
        Path, typer.Option(help="Folder of each SAE; {site}, {sae} and {seed} are filled in.")
    ],
    train_tokens: SomeTokens = None,
    eval_tokens: SomeTokens = None,
    model: SomeRecipe = None,
    fitted: SomeFitted = None,
    work: Work = Path(paths.WORK),
) -> None:
    """Train SAEs, or fit dictionary nulls; resume where a killed run left off."""
    from nullsae.jobs.saes import TrainSaeParams
    from nullsae.sae.train_sae import train_sae

    with bar("train_sae", "steps") as progress:
        train_sae(
            read_params(TrainSaeParams, params),
            train_activations=train_activations,
            eval_activations=eval_activations,
            output=output,
            work=work,
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
            model=model,
            fitted=fitted,
            progress=progress,
        )


@verbs.command("take_checkpoint", cls=Verb)
def take_checkpoint(
    sae: SaeFile,
    share: Annotated[float, typer.Option(help="Share of its training, between 0 and 1.")],
    output: Output,
) -> None:
    """Copy an SAE as it was along its training, for the later stages to run on."""
    from nullsae.sae.checkpoints import take_checkpoint

    take_checkpoint(sae, share=share, output=output)


@verbs.command("evaluate_sae", cls=Verb)
def evaluate_sae(
    params: Params,
    sae: SaeFile,
    train_activations: Captured,
    eval_activations: Captured,
    train_tokens: Manifest,
    eval_tokens: Manifest,
    reconstruction: Table,
    documents: Table,
    geometry: Table,
    model: SomeRecipe = None,
) -> None:
    """Measure reconstruction, fidelity and the token-lookup floor on eval, and the decoder."""
    from nullsae.jobs.metrics import EvaluateSaeParams
    from nullsae.metrics.evaluate import evaluate_sae

    with bar("evaluate_sae", "tokens") as progress:
        evaluate_sae(
            read_params(EvaluateSaeParams, params),
            sae=sae,
            model=model,
            train_activations=train_activations,
            eval_activations=eval_activations,
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
            reconstruction=reconstruction,
            documents=documents,
            geometry=geometry,
            progress=progress,
        )


@verbs.command("cross_evaluate", cls=Verb)
def cross_evaluate(
    params: Params,
    sae: SaeFile,
    activations: ManyCaptured,
    tokens: Manifest,
    output: Table,
) -> None:
    """Reconstruct other variants' activations by one variant's SAE."""
    from nullsae.jobs.metrics import CrossEvaluateParams
    from nullsae.metrics.cross import cross_evaluate

    cross_evaluate(
        read_params(CrossEvaluateParams, params),
        sae=sae,
        activations=activations,
        tokens=tokens,
        output=output,
    )


@verbs.command("match_dictionaries", cls=Verb)
def match_dictionaries(
    params: Params,
    sae: Annotated[
        str, typer.Option(help="cfg.json of each SAE; {variant}, {draw} and {seed} are filled in.")
    ],
    output: Table,
) -> None:
    """Match the decoders of one recipe's SAEs across seeds, draws and variants."""
    from nullsae.jobs.metrics import MatchDictionariesParams
    from nullsae.metrics.overlap import match_dictionaries

    with bar("match_dictionaries", "pairs") as progress:
        match_dictionaries(
            read_params(MatchDictionariesParams, params), sae=sae, output=output, progress=progress
        )
