"""Verbs that make SAEs and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from nullsae import paths
from nullsae.cli import options
from nullsae.cli.job import job

verbs = typer.Typer()


@verbs.command("train_sae", cls=options.Verb)
def train_sae(
    params: options.Params,
    train_activations: options.Captured,
    eval_activations: options.Captured,
    output: Annotated[
        Path, Option(help="Folder of each SAE; {site}, {sae} and {seed} are filled in.")
    ],
    train_tokens: options.SomeTokens = None,
    eval_tokens: options.SomeTokens = None,
    model: options.SomeRecipe = None,
    fitted: options.SomeFitted = None,
    given: Annotated[
        Path | None,
        Option(help="cfg.json of the SAE whose L0 is the target; {site}, {sae}, {seed} as above."),
    ] = None,
    work: options.Work = Path(paths.WORK),
) -> None:
    """Train SAEs, or fit dictionary nulls; resume where a killed run left off."""
    from nullsae.jobs.saes import TrainSaeParams
    from nullsae.sae.train_sae import train_sae

    parsed = options.read_params(TrainSaeParams, params)
    reads = (train_activations, eval_activations, train_tokens, model, fitted)
    with job("train_sae", "steps", parsed, reads=reads) as progress:
        train_sae(
            parsed,
            train_activations=train_activations,
            eval_activations=eval_activations,
            output=output,
            work=work,
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
            model=model,
            fitted=fitted,
            given=given,
            progress=progress,
        )


@verbs.command("derive_sae", cls=options.Verb)
def derive_sae(
    params: options.Params,
    sae: options.SaeFile,
    train_activations: options.Captured,
    eval_activations: options.Captured,
    output: options.Output,
) -> None:
    """Make a null dictionary from another SAE, without training."""
    from nullsae.jobs.saes import DeriveSaeParams
    from nullsae.sae.derive_sae import derive_sae

    given, reads = options.read_params(DeriveSaeParams, params), (sae, train_activations)
    with job("derive_sae", "SAEs", given, reads=(*reads, eval_activations)):
        derive_sae(
            given,
            sae=sae,
            train_activations=train_activations,
            eval_activations=eval_activations,
            output=output,
        )


@verbs.command("take_checkpoint", cls=options.Verb)
def take_checkpoint(
    sae: options.SaeFile,
    share: Annotated[float, Option(help="Share of its training, between 0 and 1.")],
    output: options.Output,
) -> None:
    """Copy an SAE as it was during its training, for later stages."""
    from nullsae.sae.checkpoints import checkpoint_folder, take_checkpoint

    taken = checkpoint_folder(sae.parent, share) / sae.name
    with job("take_checkpoint", "files", reads=[sae], makes=[output], parts=[taken]):
        take_checkpoint(sae, share=share, output=output)


@verbs.command("evaluate_sae", cls=options.Verb)
def evaluate_sae(
    params: options.Params,
    sae: Annotated[
        str, Option(help="cfg.json of each SAE; {variant}, {site}, {sae}, {seed} are filled in.")
    ],
    train_activations: options.OfVariants,
    eval_activations: options.OfVariants,
    train_tokens: options.Manifest,
    eval_tokens: options.Manifest,
    output: Annotated[
        str, Option(help="Folder of each SAE's tables; the same keys are filled in.")
    ],
    model: options.SomeRecipe = None,
    kept: options.Kept = None,
    code: options.KeptCode = "",
) -> None:
    """Measure reconstruction, fidelity, the token-lookup floor (on eval) and the decoder."""
    from nullsae.core.kept import Kept
    from nullsae.jobs.metrics import EvaluateSaesParams
    from nullsae.metrics.evaluate_all import evaluate_saes

    given, reads = options.read_params(EvaluateSaesParams, params), (model, eval_tokens)
    with job("evaluate_sae", "SAEs", given, reads=reads, makes=[output]) as progress:
        evaluate_saes(
            given,
            sae=sae,
            model=model,
            train_activations=train_activations,
            eval_activations=eval_activations,
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
            output=output,
            kept=Kept(kept, code) if kept else None,
            progress=progress,
        )


@verbs.command("cross_evaluate", cls=options.Verb)
def cross_evaluate(
    params: options.Params,
    sae: options.SaeFile,
    activations: options.ManyCaptured,
    tokens: options.Manifest,
    output: options.Table,
) -> None:
    """Reconstruct other variants' activations with one variant's SAE."""
    from nullsae.jobs.metrics import CrossEvaluateParams
    from nullsae.metrics.cross import cross_evaluate

    given = options.read_params(CrossEvaluateParams, params)
    # No `makes`: evaluate_sae records the provenance of this folder.
    with job("cross_evaluate", "variants", given, reads=(sae, tokens)) as progress:
        cross_evaluate(
            given,
            sae=sae,
            activations=activations,
            tokens=tokens,
            output=output,
            progress=progress,
        )


@verbs.command("match_dictionaries", cls=options.Verb)
def match_dictionaries(
    params: options.Params,
    sae: Annotated[
        str, Option(help="cfg.json of each SAE; {variant}, {draw} and {seed} are filled in.")
    ],
    output: options.Table,
) -> None:
    """Match the decoders of one recipe's SAEs across seeds, draws and variants."""
    from nullsae.jobs.metrics import MatchDictionariesParams
    from nullsae.metrics.overlap import match_dictionaries

    given = options.read_params(MatchDictionariesParams, params)
    about = f"{len(given.cells)} SAEs, at most {given.matching_latents:,} latents of each"
    with job(
        "match_dictionaries", "pairs", given, makes=[output], on_cpu=True, about=about
    ) as progress:
        match_dictionaries(
            given,
            sae=sae,
            output=output,
            progress=progress,
        )
