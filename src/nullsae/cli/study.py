"""Verbs about a whole study: tables and report."""

from __future__ import annotations

from pathlib import Path

import typer

from nullsae.cli.job import job
from nullsae.cli.options import Params, Root, Verb, read_params

verbs = typer.Typer()


@verbs.command("aggregate", cls=Verb)
def aggregate(params: Params, root: Root = Path()) -> None:
    """Join all cells into tables; compute summaries, contrasts and verdicts."""
    from nullsae.aggregation import aggregate
    from nullsae.jobs.grid import cell_files
    from nullsae.jobs.tables import AggregateParams

    given = read_params(AggregateParams, params)
    n_files = sum(map(len, cell_files(given.study).values()))
    about = f"{n_files:,} files of cells"
    with job("aggregate", "comparisons", given, about=about) as progress:
        aggregate(given.study, root, progress)


@verbs.command("report", cls=Verb)
def report(params: Params, root: Root = Path()) -> None:
    """Draw the figures and write results/report/index.html."""
    from nullsae.jobs.report import ReportParams
    from nullsae.report.build import build_report
    from nullsae.report.names import figure_names

    given = read_params(ReportParams, params)
    about = f"{len(figure_names(given.study))} figures"
    with job("report", "figures", given, about=about):
        build_report(given.study, root)
