"""The command line: one verb per rule of the workflow, each usable by hand."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from typing import Annotated

import typer

from nullsae import __version__
from nullsae.cli import latents, saes, study, subjects, tools, toy
from nullsae.core.errors import UserError
from nullsae.core.visible import show_only_visible

ABOUT = (
    "Placebo-controlled interpretability of sparse autoencoders.\n\n"
    "Each verb is one rule of the workflow, in the order in which data flows. Snakemake calls "
    "them; `snakemake -n -p` prints every line with its files and params, ready to be run by "
    "hand.\n\n"
    "Params are the slice of the config that the stage uses, as JSON text or as a .json or .yaml "
    "file."
)

app = typer.Typer(
    help=ABOUT,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Set up what all verbs share."""
    if version:
        print(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for client in ("httpx", "httpx2"):  # a line per request, of which there are thousands
        logging.getLogger(client).setLevel(logging.WARNING)


for part in (subjects, saes, latents, study, toy, tools):
    app.add_typer(part.verbs)


def main() -> None:
    """Entry point: a `UserError` becomes one line and exit code 2."""
    # Libraries make a million objects that stay. Looking through them for garbage while they load,
    # and once more at the end, took a third of a small job's time.
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)
    # Read when torch loads: spinning barriers cost more than they save where jobs share cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Kernels are code: none is downloaded because a model's family has one.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    show_only_visible()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except UserError as error:
        verb = sys.argv[1] if len(sys.argv) > 1 else ""
        print(f"nullsae {verb}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
