"""Verbs of the toy models of superposition."""

from __future__ import annotations

from pathlib import Path

import typer

from nullsae.cli.options import Params, Root, Table, Verb, read_params
from nullsae.core.progress import bar

verbs = typer.Typer()


@verbs.command("train_toy", cls=Verb)
def train_toy(params: Params, output: Table) -> None:
    """Train toy SAEs over a sweep of sparsity coefficients, and measure them."""
    from nullsae.jobs.toy import TrainToyParams
    from nullsae.toy.sweep import train_toy

    with bar("train_toy", "steps") as progress:
        train_toy(read_params(TrainToyParams, params), output, progress=progress)


@verbs.command("report_toy", cls=Verb)
def report_toy(params: Params, root: Root = Path()) -> None:
    """Join the sweeps; draw the figures and write results/toy/index.html."""
    from nullsae.jobs.toy import ReportToyParams
    from nullsae.toy.page import report_toy

    report_toy(read_params(ReportToyParams, params), root)
