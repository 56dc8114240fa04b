"""Verbs that make what SAEs see: corpora, subjects, activations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from nullsae import paths
from nullsae.cli.options import (
    Fitted,
    Manifest,
    Output,
    Params,
    Recipe,
    Root,
    SomePortion,
    SomeTrained,
    Verb,
    Work,
    read_params,
)
from nullsae.core.progress import bar

verbs = typer.Typer()


@verbs.command("prepare_corpus", cls=Verb)
def prepare_corpus(
    name: Annotated[str, typer.Option(help="Name of the corpus, as in `corpora`.")],
    params: Params,
    root: Root = Path(),
) -> None:
    """Read documents, split them, train or load the tokenizer, pack contexts."""
    from nullsae.corpus.prepare import prepare_corpus
    from nullsae.jobs.corpus import PrepareCorpusParams

    prepare_corpus(read_params(PrepareCorpusParams, params), name, root)


@verbs.command("train_subject", cls=Verb)
def train_subject(
    params: Params,
    train_tokens: Manifest,
    eval_tokens: Manifest,
    trained: Annotated[Path, typer.Option(help="Folder of the trained variant.")],
    step0: Annotated[Path, typer.Option(help="Folder of the initial weights.")],
    work: Work = Path(paths.WORK),
) -> None:
    """Train the small subject, or resume; keep its initial weights as step0."""
    from nullsae.jobs.subjects import TrainSubjectParams
    from nullsae.subjects.publish import train_subject

    given = read_params(TrainSubjectParams, params)
    with bar("train_subject", "steps") as progress:
        tokens = {"train_tokens": train_tokens, "eval_tokens": eval_tokens}
        train_subject(given, **tokens, trained=trained, step0=step0, work=work, progress=progress)


@verbs.command("randomize_model", cls=Verb)
def randomize_model(
    params: Params,
    eval_tokens: Manifest,
    output: Output,
    trained: SomeTrained = None,
) -> None:
    """Make one variant of a subject and run its gates."""
    from nullsae.jobs.subjects import RandomizeModelParams
    from nullsae.subjects.publish import randomize_model

    randomize_model(
        read_params(RandomizeModelParams, params),
        trained=trained,
        eval_tokens=eval_tokens,
        output=output,
    )


@verbs.command("cache_activations", cls=Verb)
def cache_activations(
    params: Params,
    split: Annotated[str, typer.Option(help="sae_train or eval.")],
    model: Recipe,
    tokens: Manifest,
    output: Output,
    portion: SomePortion = None,
) -> None:
    """Capture all sites of a split in one forward pass, in checked shards."""
    from nullsae.activations.capture import Portion, cache_activations
    from nullsae.jobs.activations import CacheActivationsParams

    with bar("cache_activations", "tokens") as progress:
        captured = cache_activations(
            read_params(CacheActivationsParams, params),
            split=split,
            model=model,
            tokens=tokens,
            output=output,
            portion=Portion.parse(portion) if portion else None,
            progress=progress,
        )
    logging.info("captured %s", ", ".join(captured) or "nothing: all sites were there")


@verbs.command("sample_gaussian", cls=Verb)
def sample_gaussian(
    params: Params,
    split: Annotated[str, typer.Option(help="sae_train or eval.")],
    fitted: Fitted,
    tokens: Manifest,
    output: Output,
) -> None:
    """Sample activations with the trained variant's mean and covariance, and nothing else."""
    from nullsae.activations.gaussian import sample_gaussian
    from nullsae.jobs.activations import SampleGaussianParams

    with bar("sample_gaussian", "tokens") as progress:
        sample_gaussian(
            read_params(SampleGaussianParams, params),
            split=split,
            fitted=fitted,
            tokens=tokens,
            output=output,
            progress=progress,
        )
