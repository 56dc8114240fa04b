"""Verbs about a whole study: tables and report."""

from __future__ import annotations

from pathlib import Path

import typer

from nullsae import paths
from nullsae.cli.options import Params, Root, RunConfig, Verb, read_params

verbs = typer.Typer()


@verbs.command("aggregate", cls=Verb)
def aggregate(
    params: Params, run_config: RunConfig = Path(paths.RUN_CONFIG), root: Root = Path()
) -> None:
    """Join all cells into tables; compute summaries, contrasts and verdicts."""
    from nullsae.aggregation import aggregate
    from nullsae.config.read import read_config
    from nullsae.jobs.tables import AggregateParams

    aggregate(read_config(run_config), read_params(AggregateParams, params), root)


@verbs.command("report", cls=Verb)
def report(params: Params, root: Root = Path()) -> None:
    """Draw the figures and write results/report/index.html."""
    from nullsae.jobs.report import ReportParams
    from nullsae.report.build import build_report

    build_report(read_params(ReportParams, params).study, root)
