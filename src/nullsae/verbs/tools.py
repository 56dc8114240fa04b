"""Verbs that are no rules: for people, before, beside and after a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nullsae import paths
from nullsae.arguments import Output, Root, SaeFile
from nullsae.errors import UserError

verbs = typer.Typer()


@verbs.command("export_sae")
def export_sae(
    sae: SaeFile,
    layout: Annotated[str, typer.Option(help="saelens or sparsify.")],
    output: Output,
) -> None:
    """Write an SAE in the format of SAELens or sparsify."""
    from nullsae.sae.interchange import export_sae

    export_sae(sae, layout, output)


@verbs.command("plan")
def plan(
    configfile: Annotated[
        list[Path] | None, typer.Option(help="Overlays, as for snakemake; may be repeated.")
    ] = None,
    root: Root = Path(),
) -> None:
    """Say what a study will ask of language models, and what that costs, before it is asked."""
    from nullsae.planning import print_plan

    print_plan(root, configfile or [])


@verbs.command("serve_gguf")
def serve_gguf(
    port: Annotated[int, typer.Option(help="Port of the loopback interface.")],
    package: Annotated[
        str | None, typer.Option(help="Installed Python package that holds one .gguf file.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="The .gguf file.")] = None,
    quantize: Annotated[
        str, typer.Option(help="none, or q4_0 or q8_0: a copy that reads prompts faster.")
    ] = "none",
    context_tokens: Annotated[int, typer.Option(help="Prompt and answer, of one request.")] = 4096,
    slots: Annotated[int, typer.Option(help="Requests answered at the same time.")] = 4,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    work: Annotated[Path, typer.Option(help="Folder for the copy.")] = Path(paths.WORK),
) -> None:
    """Serve a GGUF file by llama.cpp, as an endpoint for explainers and judges."""
    from nullsae.autointerp.serve import serve_gguf
    from nullsae.inputs import GgufSource, find_gguf

    if (package is None) == (path is None):
        raise UserError("give either --package or --path")
    source = GgufSource(kind="gguf", package=package, path=str(path) if path else None)
    serve_gguf(
        find_gguf(source, where="serve_gguf"),
        port=port,
        quantize=quantize,
        context_tokens=context_tokens,
        slots=slots,
        threads=threads,
        work=work,
    )


@verbs.command("verdicts")
def verdicts(root: Root = Path()) -> None:
    """Print the verdict table of a finished study."""
    from nullsae.terminal import print_verdicts

    print_verdicts(root)
