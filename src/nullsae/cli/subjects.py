"""Verbs that make what SAEs read: corpora, subjects, activations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from nullsae import paths
from nullsae.cli import options
from nullsae.cli.job import job

verbs = typer.Typer()


@verbs.command("prepare_corpus", cls=options.Verb)
def prepare_corpus(
    name: Annotated[str, Option(help="Name of the corpus, as in `corpora`.")],
    params: options.Params,
    root: options.Root = Path(),
) -> None:
    """Turn documents into token contexts: split, tokenize, pack."""
    from nullsae.corpus.prepare import prepare_corpus
    from nullsae.jobs.corpus import PrepareCorpusParams

    given = options.read_params(PrepareCorpusParams, params)
    made = root / paths.CORPUS.format(corpus=name)
    wanted = {"sae_train": given.corpus.sae_train_tokens, "eval": given.corpus.eval_tokens}
    about = ", ".join(f"{split}: {n or 'all'} tokens" for split, n in wanted.items())
    with job("prepare_corpus", "tokens", given, makes=[made], about=about) as progress:
        prepare_corpus(given, name, root, progress)


@verbs.command("train_subject", cls=options.Verb)
def train_subject(
    params: options.Params,
    train_tokens: options.Manifest,
    eval_tokens: options.Manifest,
    trained: Annotated[Path, Option(help="Folder of the trained variant.")],
    step0: Annotated[Path, Option(help="Folder of the initial weights.")],
    work: options.Work = Path(paths.WORK),
) -> None:
    """Train the small subject (or resume), and keep its initial weights as step0."""
    from nullsae.jobs.subjects import TrainSubjectParams
    from nullsae.subjects.publish import train_subject

    given = options.read_params(TrainSubjectParams, params)
    tokens = {"train_tokens": train_tokens, "eval_tokens": eval_tokens}
    with job("train_subject", "steps", given, reads=tokens.values()) as progress:
        train_subject(given, **tokens, trained=trained, step0=step0, work=work, progress=progress)


@verbs.command("retrain_subject", cls=options.Verb)
def retrain_subject(
    params: options.Params,
    eval_tokens: options.Manifest,
    output: options.Output,
    train_tokens: Annotated[
        Path | None, Option(help="manifest.json of sae_train, for a subject trained here.")
    ] = None,
    trained: options.SomeTrained = None,
    work: options.Work = Path(paths.WORK),
) -> None:
    """Train the subject from another seed, or load one trained elsewhere, and run its gates."""
    from nullsae.jobs.subjects import RetrainSubjectParams
    from nullsae.subjects.retraining import retrain_subject

    given = options.read_params(RetrainSubjectParams, params)
    trains, reads = given.source.kind == "train", (train_tokens, eval_tokens, trained)
    unit = "steps" if trains else "held-out tokens"
    makes = [] if trains else [output]
    with job("retrain_subject", unit, given, reads=reads, makes=makes) as progress:
        retrain_subject(
            given,
            eval_tokens=eval_tokens,
            output=output,
            work=work,
            train_tokens=train_tokens,
            trained=trained,
            progress=progress,
        )


@verbs.command("randomize_model", cls=options.Verb)
def randomize_model(
    params: options.Params,
    eval_tokens: options.Manifest,
    output: options.Output,
    trained: options.SomeTrained = None,
) -> None:
    """Make one variant of a subject and run its gates."""
    from nullsae.jobs.subjects import RandomizeModelParams
    from nullsae.subjects.publish import randomize_model

    given = options.read_params(RandomizeModelParams, params)
    reads = (trained, eval_tokens)
    with job("randomize_model", "held-out tokens", given, reads=reads, makes=[output]) as progress:
        randomize_model(
            given, trained=trained, eval_tokens=eval_tokens, output=output, progress=progress
        )


@verbs.command("cache_activations", cls=options.Verb)
def cache_activations(
    params: options.Params,
    split: Annotated[str, Option(help="sae_train or eval.")],
    model: options.Recipe,
    tokens: options.Manifest,
    output: options.Output,
    portion: options.SomePortion = None,
) -> None:
    """Capture all sites of a split in one forward pass, as checked shards."""
    from nullsae.activations.capture import Portion, cache_activations
    from nullsae.jobs.activations import CacheActivationsParams

    given = options.read_params(CacheActivationsParams, params)
    with job("cache_activations", "tokens", given, reads=(model, tokens)) as progress:
        captured = cache_activations(
            given,
            split=split,
            model=model,
            tokens=tokens,
            output=output,
            portion=Portion.parse(portion) if portion else None,
            progress=progress,
        )
    logging.info("captured %s", ", ".join(captured) or "nothing: all sites were there")


@verbs.command("sample_gaussian", cls=options.Verb)
def sample_gaussian(
    params: options.Params,
    split: Annotated[str, Option(help="sae_train or eval.")],
    fitted: options.Fitted,
    tokens: options.Manifest,
    output: options.Output,
) -> None:
    """Sample Gaussian activations with the trained variant's mean and covariance."""
    from nullsae.activations.sampling import sample_gaussian
    from nullsae.jobs.activations import SampleGaussianParams

    given = options.read_params(SampleGaussianParams, params)
    with job("sample_gaussian", "tokens", given, reads=(fitted, tokens)) as progress:
        sample_gaussian(
            given,
            split=split,
            fitted=fitted,
            tokens=tokens,
            output=output,
            progress=progress,
        )
