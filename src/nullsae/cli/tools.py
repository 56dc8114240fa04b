"""Verbs that are no rules: for people, before, beside and after a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from nullsae import paths
from nullsae.cli.options import Maybe, Output, Overlays, Root, SaeFile, Study, in_study, seen_from
from nullsae.core.errors import UserError
from nullsae.core.visible import visible

verbs = typer.Typer()
export = typer.Typer(
    help="Write SAEs, or latents and their explanations, for other tools.", no_args_is_help=True
)
verbs.add_typer(export, name="export")
ConfigPairs = Annotated[
    list[str] | None, Option(help="KEY=VALUE, as for snakemake; may be repeated.")
]


@verbs.command("accept")
def accept(
    rules: Annotated[list[str] | None, typer.Argument(help="Rules of the workflow.")] = None,
    all_rules: Annotated[bool, Option("--all", help="All rules whose code changed.")] = False,
    yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False,
    configfile: Overlays = None,
    config: ConfigPairs = None,
    root: Root = Path(),
) -> None:
    """Keep results that older code made: record that the present code gives the same."""
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
            help="Folder or hub id, and after :: a folder within it, as "
            "EleutherAI/sae-pythia-70m-32k::layers.3; or a release of SAELens, gpt2-small-res-jb."
        ),
    ],
    sae_id: Annotated[
        str | None,
        typer.Argument(help="Of a release: the SAE in it, as blocks.8.hook_resid_pre."),
    ] = None,
    model: Annotated[
        str | None, Option(help="Hub id or folder; by default what the SAE's files name.")
    ] = None,
    site: Annotated[
        str | None, Option(help="Such as resid_post.8; by default what its files name.")
    ] = None,
    bos: Annotated[
        bool | None,
        Option(help="Whether BOS begins each context; by default as its files or the tokenizer."),
    ] = None,
    context_tokens: Annotated[
        int | None, Option(min=8, help="Length of a context; by default as its files, or 128.")
    ] = None,
    corpus: Annotated[
        str,
        Option(help="Text: a file (.txt, .jsonl, .parquet), a data set of the hub, or auto."),
    ] = "auto",
    tokens: Annotated[int, Option(min=256, help="Tokens to measure on.")] = 8192,
    expect: Annotated[
        str, Option(help="Published figures: l0=71,explained_variance=0.8, or one of the two.")
    ] = "",
    overlay: Annotated[
        Maybe, Option(help="Write the study of this SAE here, and print its plan.")
    ] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    root: Root = Path(),
) -> None:
    """Look at an SAE before anything is spent on it: what is it, and is it fed as it was trained?

    First a card: architecture, site, model, context, BOS, normalization, and where each is known
    from. Then explained variance, L0 and CE score on a sample of text, beside the published figures
    (SAELens' list has many; --expect gives others) and beside random directions, the placebo. A
    wrong site, BOS, scale or model raises no error. It shows in these figures alone.

    Where they are not reached, BOS, sites nearby and scalings of the activations are tried, and the
    last line says which one fits. Exit code: 0 if the SAE fits as given, 1 if not, 2 for a mistake
    in what was asked. A study runs the same check, and stops before a verdict is given.
    """
    from nullsae.cli.check_sae import Asked, check_sae, expected, pretrained_of

    asked = Asked(
        pretrained_of(sae, sae_id),
        model=model,
        site=site,
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
    sae: SaeFile, layout: Annotated[str, Option(help="saelens or sparsify.")], output: Output
) -> None:
    """Write an SAE in the format of SAELens or sparsify."""
    from nullsae.sae.exchange.export import export_sae

    export_sae(sae, layout, output)


@verbs.command("fetch")
def fetch(
    study: Study = Path(),
    configfile: Overlays = None,
    into: Annotated[Maybe, Option(help="Keep it all in this folder, to be HF_HOME later.")] = None,
    model: Annotated[
        list[str] | None,
        Option(help="Also this model of the hub, ID or ID@REVISION; may be repeated."),
    ] = None,
) -> None:
    """Download what a study reads from hubs, for machines without network."""
    from nullsae.fetching.study import fetch_study

    overlays = seen_from(study, *configfile or ())
    hub = seen_from(study, into)[0] if into else None
    with in_study(study):
        fetch_study(Path(), overlays, into=hub, models=model or [])


@verbs.command("check_cluster")
def check_cluster(
    profile: Annotated[Path, Option(help="Folder of the Snakemake profile.")] = Path(
        "profiles/slurm"
    ),
) -> None:
    """Say what of a SLURM profile does not fit this cluster, before anything is sent to it."""
    from nullsae.planning.slurm_profile import check_cluster

    wrong, fits = check_cluster(profile)
    for line in (*wrong, *fits):
        print(visible(line))
    if wrong:
        raise UserError(f"--profile: {profile}: {len(wrong)} of its settings do not fit")


@export.command("latents")
def export_latents(
    latents: Annotated[
        list[Path], Option(help="Folder results/latents/subject=.../seed=... of an SAE; repeat.")
    ],
    layout: Annotated[str, Option(help="delphi or neuronpedia.")],
    output: Output,
    tokens: Annotated[
        Maybe, Option(help="manifest.json of the corpus' eval split; by default the study's.")
    ] = None,
    tokenizer: Annotated[
        Maybe, Option(help="tokenizer.json of the corpus; by default the study's.")
    ] = None,
    creator: Annotated[
        str, Option(help="neuronpedia: id of the account that will own the rows.")
    ] = "nullsae",
    explainer: Annotated[
        str | None, Option(help="Write this one's explanations and their scores, too.")
    ] = None,
) -> None:
    """Write the firings or windows of sampled latents in the format of delphi or Neuronpedia."""
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
        str, Option(help="auto, cpu, gpu (calibrated here), a100, h100, l40s, rtx4090 or a6000.")
    ] = "auto",
    gpus: Annotated[int, Option(min=1, help="GPUs to spread the jobs over.")] = 1,
    cores: Annotated[
        int | None, Option(min=1, help="CPU cores; by default this machine's, 16 per GPU.")
    ] = None,
    json: Annotated[Maybe, Option(help="Write the plan here too.")] = None,
    calibrate: Annotated[
        bool, Option(help="First measure this machine, for this plan and later ones.")
    ] = False,
) -> None:
    """Say what a study takes before it runs: jobs, time, disk, and what it asks and costs."""
    from nullsae.planning.devices import calibrate as measure
    from nullsae.planning.show import print_plan

    if calibrate:
        print(f"written to {measure(print)}")
    overlays = seen_from(study, *configfile or ())
    file = seen_from(study, json)[0] if json else None
    with in_study(study):
        print_plan(Path(), overlays, device=device, gpus=gpus, cores=cores, json_file=file)


@verbs.command("prune")
def prune(
    study: Study = Path(),
    configfile: Overlays = None,
    yes: Annotated[bool, Option("--yes", help="Delete what is listed.")] = False,
    llm_cache: Annotated[
        bool,
        Option("--llm-cache", help="Also replies of language models, which were paid for."),
    ] = False,
) -> None:
    """List what lies below results/ and the present config does not name, with sizes."""
    from nullsae.planning.prune import prune

    overlays = seen_from(study, *configfile or ())
    with in_study(study):
        prune(Path(), overlays, yes=yes, llm_cache=llm_cache)


@verbs.command("serve_gguf")
def serve_gguf(
    port: Annotated[int, Option(help="Port of the loopback interface.")],
    package: Annotated[
        str | None, Option(help="Installed Python package that holds one .gguf file.")
    ] = None,
    path: Annotated[Maybe, Option(help="The .gguf file.")] = None,
    quantize: Annotated[
        str, Option(help="none, or q4_0 or q8_0: a copy that reads prompts faster.")
    ] = "none",
    context_tokens: Annotated[int, Option(help="Prompt and answer, of one request.")] = 4096,
    slots: Annotated[int, Option(help="Requests answered at the same time.")] = 4,
    threads: Annotated[int, Option(help="CPU threads.")] = 1,
    work: Annotated[Path, Option(help="Folder for the copy.")] = Path(paths.WORK),
) -> None:
    """Serve a GGUF file by llama.cpp, as an endpoint for explainers and judges."""
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
        bool, Option("--all", help="Also each verdict, sums per metric, latents that beat placebo.")
    ] = False,
) -> None:
    """Print what a finished study answers."""
    from nullsae.cli.print_verdicts import print_verdicts

    print_verdicts(study, all_verdicts=all_verdicts)
