"""Verbs of the toy models of superposition."""

from __future__ import annotations

from pathlib import Path

import typer

from nullsae.cli.job import job
from nullsae.cli.options import Params, Root, Table, Verb, read_params

verbs = typer.Typer()


@verbs.command("train_toy", cls=Verb)
def train_toy(params: Params, output: Table) -> None:
    """Train and measure toy SAEs over a sweep of sparsity coefficients."""
    from nullsae.jobs.toy import TrainToyParams
    from nullsae.toy.sweep import train_toy

    given = read_params(TrainToyParams, params)
    sizes = given.source.model_dump(include={"n_samples", "d_input", "n_true_features"})
    about = ", ".join(f"{name} {n:,}" for name, n in sizes.items())
    with job("train_toy", "steps", given, makes=[output], about=about) as progress:
        train_toy(given, output, progress=progress)


@verbs.command("report_toy", cls=Verb)
def report_toy(params: Params, root: Root = Path()) -> None:
    """Join the sweeps, draw the figures and write results/toy/index.html."""
    from nullsae.jobs.toy import ReportToyParams
    from nullsae.toy.page import report_toy

    given = read_params(ReportToyParams, params)
    with job("report_toy", "figures", given):
        report_toy(given, root)
