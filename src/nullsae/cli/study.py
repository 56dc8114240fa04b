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
    from nullsae.jobs.tables import AggregateParams

    given = read_params(AggregateParams, params)
    with job("aggregate", "comparisons", given) as progress:
        aggregate(given.study, root, progress)


@verbs.command("report", cls=Verb)
def report(params: Params, root: Root = Path()) -> None:
    """Draw the figures and write results/report/index.html."""
    from nullsae.jobs.report import ReportParams
    from nullsae.report.build import build_report

    given = read_params(ReportParams, params)
    with job("report", "figures", given):
        build_report(given.study, root)
