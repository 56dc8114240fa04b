"""The command line: one verb per rule of the workflow, each usable by hand."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from nullsae import __version__, paths
from nullsae.arguments import (
    Captured,
    Costs,
    Fitted,
    Manifest,
    ManyCaptured,
    Output,
    Params,
    Recipe,
    Root,
    RunConfig,
    SaeFile,
    SomeBase,
    SomeExplanations,
    SomeFitted,
    SomeJudge,
    SomeRecipe,
    SomeRunConfig,
    SomeTokens,
    SomeTrained,
    Table,
    Tokenizer,
    Verb,
    Windows,
    Work,
    asked_by,
    read_config,
    read_params,
)
from nullsae.errors import UserError
from nullsae.progress import bar
from nullsae.tools import tools

ABOUT = """Placebo-controlled interpretability of sparse autoencoders.

Each verb is one rule of the workflow, in the order in which data flows. Snakemake calls them;
`snakemake -n -p` prints every line with its files and params, ready to be run by hand.

Params are the slice of the config that the stage uses, as JSON text or as a .json or .yaml file.
"""

app = typer.Typer(
    help=ABOUT,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Set up what all verbs share."""
    if version:
        print(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


@app.command("prepare_corpus", cls=Verb)
def prepare_corpus(
    name: Annotated[str, typer.Option(help="Name of the corpus, as in `corpora`.")],
    params: Params,
    root: Root = Path(),
) -> None:
    """Read documents, split them, train or load the tokenizer, pack contexts."""
    from nullsae.corpus.prepare import prepare_corpus
    from nullsae.params import PrepareCorpusParams

    prepare_corpus(read_params(PrepareCorpusParams, params), name, root)


@app.command("train_subject", cls=Verb)
def train_subject(
    params: Params,
    train_tokens: Manifest,
    eval_tokens: Manifest,
    trained: Annotated[Path, typer.Option(help="Folder of the trained variant.")],
    step0: Annotated[Path, typer.Option(help="Folder of the initial weights.")],
) -> None:
    """Train the small subject; keep its initial weights as step0."""
    from nullsae.params import TrainSubjectParams
    from nullsae.subjects.variants import train_subject

    given = read_params(TrainSubjectParams, params)
    with bar("train_subject", "steps") as report:
        tokens = {"train_tokens": train_tokens, "eval_tokens": eval_tokens}
        train_subject(given, **tokens, trained=trained, step0=step0, report=report)


@app.command("randomize_model", cls=Verb)
def randomize_model(
    params: Params,
    eval_tokens: Manifest,
    output: Output,
    trained: SomeTrained = None,
) -> None:
    """Make one variant of a subject and run its gates."""
    from nullsae.params import RandomizeModelParams
    from nullsae.subjects.variants import randomize_model

    randomize_model(
        read_params(RandomizeModelParams, params),
        trained=trained,
        eval_tokens=eval_tokens,
        output=output,
    )


@app.command("cache_activations", cls=Verb)
def cache_activations(
    params: Params,
    split: Annotated[str, typer.Option(help="sae_train or eval.")],
    model: Recipe,
    tokens: Manifest,
    output: Output,
) -> None:
    """Capture all sites of a split in one forward pass, in checked shards."""
    from nullsae.activations.capture import cache_activations
    from nullsae.params import CacheActivationsParams

    with bar("cache_activations", "tokens") as report:
        captured = cache_activations(
            read_params(CacheActivationsParams, params),
            split=split,
            model=model,
            tokens=tokens,
            output=output,
            report=report,
        )
    logging.info("captured %s", ", ".join(captured) or "nothing: all sites were there")


@app.command("sample_gaussian", cls=Verb)
def sample_gaussian(
    params: Params,
    split: Annotated[str, typer.Option(help="sae_train or eval.")],
    fitted: Fitted,
    tokens: Manifest,
    output: Output,
) -> None:
    """Sample activations with the trained variant's mean and covariance, and nothing else."""
    from nullsae.activations.gaussian import sample_gaussian
    from nullsae.params import SampleGaussianParams

    with bar("sample_gaussian", "tokens") as report:
        sample_gaussian(
            read_params(SampleGaussianParams, params),
            split=split,
            fitted=fitted,
            tokens=tokens,
            output=output,
            report=report,
        )


@app.command("train_sae", cls=Verb)
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
    from nullsae.params import TrainSaeParams
    from nullsae.sae.trainer import train_sae

    with bar("train_sae", "steps") as report:
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
            report=report,
        )


@app.command("take_checkpoint", cls=Verb)
def take_checkpoint(
    sae: SaeFile,
    share: Annotated[float, typer.Option(help="Share of its training, between 0 and 1.")],
    output: Output,
) -> None:
    """Copy an SAE as it was along its training, for the later stages to run on."""
    from nullsae.sae.checkpoints import take_checkpoint

    take_checkpoint(sae, share=share, output=output)


@app.command("evaluate_sae", cls=Verb)
def evaluate_sae(
    params: Params,
    sae: SaeFile,
    train_activations: Captured,
    eval_activations: Captured,
    train_tokens: Manifest,
    eval_tokens: Manifest,
    reconstruction: Table,
    documents: Table,
    model: SomeRecipe = None,
) -> None:
    """Measure reconstruction, fidelity and the token-lookup floor on eval."""
    from nullsae.metrics.evaluate import evaluate_sae
    from nullsae.params import EvaluateSaeParams

    with bar("evaluate_sae", "tokens") as report:
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
            report=report,
        )


@app.command("cross_evaluate", cls=Verb)
def cross_evaluate(
    params: Params,
    sae: SaeFile,
    activations: ManyCaptured,
    tokens: Manifest,
    output: Table,
) -> None:
    """Reconstruct other variants' activations by one variant's SAE."""
    from nullsae.metrics.cross import cross_evaluate
    from nullsae.params import CrossEvaluateParams

    cross_evaluate(
        read_params(CrossEvaluateParams, params),
        sae=sae,
        activations=activations,
        tokens=tokens,
        output=output,
    )


@app.command("collect_latents", cls=Verb)
def collect_latents(
    params: Params,
    sae: SaeFile,
    activations: Captured,
    tokens: Manifest,
    latents: Table,
    windows: Table,
    coverage: Table,
) -> None:
    """Describe every latent; cut the windows of a random sample of them."""
    from nullsae.latents.collect import collect_latents
    from nullsae.params import CollectLatentsParams

    with bar("collect_latents", "tokens") as report:
        collect_latents(
            read_params(CollectLatentsParams, params),
            sae=sae,
            activations=activations,
            tokens=tokens,
            latents=latents,
            windows=windows,
            coverage=coverage,
            report=report,
        )


@app.command("explain_latents", cls=Verb)
def explain_latents(
    params: Params,
    windows: Windows,
    tokenizer: Tokenizer,
    output: Table,
    base: SomeBase = None,
    run_config: SomeRunConfig = None,
    costs: Costs = None,
) -> None:
    """Write an explanation of each sampled latent."""
    from nullsae.autointerp.explainers import explain_latents
    from nullsae.params import ExplainLatentsParams

    with bar("explain_latents", "latents") as report:
        explain_latents(
            read_params(ExplainLatentsParams, params),
            windows=windows,
            tokenizer=tokenizer,
            output=output,
            base=base,
            asked=asked_by(run_config, costs, report),
        )


@app.command("prepare_judge", cls=Verb)
def prepare_judge(params: Params, output: Output) -> None:
    """Fetch or convert the model that a scorer of kind likelihood runs."""
    from nullsae.autointerp.local_judge import prepare_judge
    from nullsae.params import PrepareJudgeParams

    prepare_judge(read_params(PrepareJudgeParams, params), output)


@app.command("score_latents", cls=Verb)
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
) -> None:
    """Judge windows by the explanations; score each latent."""
    from nullsae.autointerp.scorers import score_latents
    from nullsae.params import ScoreLatentsParams

    with bar("score_latents", "questions") as report:
        score_latents(
            read_params(ScoreLatentsParams, params),
            windows=windows,
            explanations=explanations,
            tokenizer=tokenizer,
            judge=judge,
            predictions=predictions,
            scores=scores,
            asked=asked_by(run_config, costs, report),
        )


@app.command("aggregate", cls=Verb)
def aggregate(
    params: Params, run_config: RunConfig = Path(paths.RUN_CONFIG), root: Root = Path()
) -> None:
    """Join all cells into tables; compute summaries, contrasts and verdicts."""
    from nullsae.aggregation import aggregate
    from nullsae.params import AggregateParams

    aggregate(read_config(run_config), read_params(AggregateParams, params), root)


@app.command("report", cls=Verb)
def report(params: Params, root: Root = Path()) -> None:
    """Draw the figures and write results/report/index.html."""
    from nullsae.params import ReportParams
    from nullsae.report.build import build_report

    build_report(read_params(ReportParams, params).study, root)


app.add_typer(tools)


def main() -> None:
    """Entry point: a `UserError` becomes one line and exit code 2."""
    # Read when torch loads: spinning barriers cost more than they save where jobs share cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except UserError as error:
        verb = sys.argv[1] if len(sys.argv) > 1 else ""
        print(f"nullsae {verb}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
