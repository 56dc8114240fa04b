"""Verbs about a whole study: tables and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nullsae import paths
from nullsae.cli.job import job
from nullsae.cli.options import (
    Maybe,
    Overlays,
    Params,
    Root,
    Study,
    Verb,
    in_study,
    read_params,
    seen_from,
)
from nullsae.core.errors import UserError

verbs = typer.Typer()


@verbs.command("aggregate", cls=Verb)
def aggregate(params: Params, root: Root = Path()) -> None:
    """Join all cells into tables and compute summaries, contrasts and verdicts."""
    from nullsae.aggregation import aggregate
    from nullsae.jobs.grid import cell_files
    from nullsae.jobs.tables import AggregateParams

    given = read_params(AggregateParams, params)
    n_files = sum(map(len, cell_files(given.study).values()))
    about = f"{n_files:,} files of cells"
    with job("aggregate", "comparisons", given, about=about) as progress:
        aggregate(given.study, root, progress)


@verbs.command("report", cls=Verb)
def report(
    study: Study = Path(),
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    params: Annotated[
        str | None, typer.Option(help="Draw the report again with these params, as the rule does.")
    ] = None,
    bundle: Annotated[
        Maybe,
        typer.Option(
            help="Write this .zip file for a bug report: versions, config, ends of logs, names and "
            "sizes of results, provenance; without keys, texts and replies."
        ),
    ] = None,
    configfile: Overlays = None,
) -> None:
    """Print the path of a finished study's report or open it; write a bundle for a bug report."""
    if bundle is not None:
        from nullsae.cli.write_bundle import write_bundle

        overlays, output = seen_from(study, *configfile or ()), seen_from(study, bundle)[0]
        with in_study(study, overlays):
            write_bundle(Path(), overlays, output)
        return
    if params is not None:
        _write_report(params, study)
    page = (study / paths.REPORT).absolute()
    if not page.is_file():
        from nullsae.config.read import way_to_run

        raise UserError(f"{page}: does not exist; {way_to_run(study, 'writes it')}")
    if params is None:
        print(page)
    if show:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            raise UserError(f"cannot open a browser here; open {page} elsewhere")


def _write_report(params: str, root: Path) -> None:
    """Draw the figures and write results/report/index.html."""
    from nullsae.jobs.report import ReportParams
    from nullsae.report.build import build_report
    from nullsae.report.names import figure_names

    given = read_params(ReportParams, params)
    about = f"{len(figure_names(given.study))} figures"
    with job("report", "figures", given, about=about):
        build_report(given.study, root)
