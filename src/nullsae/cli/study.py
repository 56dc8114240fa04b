"""Verbs about a whole study: tables and report."""

from __future__ import annotations

from pathlib import Path

import typer

from nullsae.cli.options import Params, Root, Verb, read_params

verbs = typer.Typer()


@verbs.command("aggregate", cls=Verb)
def aggregate(params: Params, root: Root = Path()) -> None:
    """Join all cells into tables; compute summaries, contrasts and verdicts."""
    from nullsae.aggregation import aggregate
    from nullsae.jobs.tables import AggregateParams

    aggregate(read_params(AggregateParams, params).study, root)


@verbs.command("report", cls=Verb)
def report(params: Params, root: Root = Path()) -> None:
    """Draw the figures and write results/report/index.html."""
    from nullsae.jobs.report import ReportParams
    from nullsae.report.build import build_report

    build_report(read_params(ReportParams, params).study, root)
