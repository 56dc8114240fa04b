"""`nullsae check`: describe an SAE, check that it fits its model, and write a study of it."""

from __future__ import annotations

import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import entropy

from nullsae import paths
from nullsae.cli.sae_card import CORPUS, SAE, SUBJECT, Asked, Card, corpus_of, source_of
from nullsae.config.compute import DEVICE, DEVICES
from nullsae.config.corpora import Corpus
from nullsae.config.model_files import from_anywhere
from nullsae.config.parse import check_sites, parse_config, parse_section
from nullsae.config.plain import read_yaml
from nullsae.config.pretrained import FromObject
from nullsae.config.read import BASE, OVERLAY, merge, study_files
from nullsae.config.sites import site_kind
from nullsae.config.subjects import PretrainedSource
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.core.progress import bar
from nullsae.core.visible import visible
from nullsae.corpus.prepare import prepare_corpus
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.corpus import PrepareCorpusParams
from nullsae.metrics.feeding import AS_THEY_ARE, Checked, Feeding, Measured, Sample
from nullsae.metrics.gate import changes, doubt, figures, reason
from nullsae.metrics.remedies import check_feeding
from nullsae.planning.new_study import placebos_of
from nullsae.planning.show import print_plan
from nullsae.subjects.families import text_config
from nullsae.subjects.loading import Subject, fetch
from nullsae.subjects.publish import check_tokens

# Tokens that the written study reads from a data set of the hub.
HUB_TOKENS = 1_000_000
# A model that is worse than token frequencies by this much is not read as it was trained.
WORSE_NATS = 0.5
# The option for each of these keys of a corpus; --corpus for all others.
OPTIONS = {
    "eval_tokens": "--tokens",
    "tokenizer": "--model",
    "prepend_bos": "--bos",
    "context_tokens": "--context-tokens",
}
_OF_CONFIG = re.compile(rf"^config: corpora\.{CORPUS}(?:\.(\w+)[.\w]*)?")


def check_sae(asked: Asked, *, overlay: Path | None, root: Path) -> bool:
    """Print what an SAE is, write a study of it, and return whether it fits its model.

    Args:
        asked: what the command line asks for.
        overlay: file to write, an overlay on the base config of `root`; its plan is printed. A
            file named study.yaml makes a study of its own folder, unless `root` is another one.
        root: folder of the study; the current one by default.

    Raises:
        UserError: SAE, model or text is not available, or they do not fit together at all.
    """
    console = Console() if Console().is_terminal else Console(width=120)
    if overlay is not None:
        root = _study_of_overlay(overlay, root)
    if not DEVICE.fullmatch(asked.device):
        raise UserError(f"--device: {asked.device!r} is not one of {', '.join(DEVICES)}")
    card = Card(asked)
    try:
        checked, losses = _measured(card)
    except UserError:
        _print_card(console, card)
        raise
    _print_answer(console, card, checked)
    if losses.clean > losses.unigram + WORSE_NATS:
        said = (
            f"Warning: the model's loss is {losses.clean:.2f} nats per token, but token "
            f"frequencies alone reach {losses.unigram:.2f}: the model is not trained, or the text "
            f"is cut by another model's tokenizer. A study of it would stop at its gates."
        )
        console.print(said, markup=False, soft_wrap=True)
    _print_figures(console, card, checked, losses.score)
    _print_card(console, card)
    if overlay is not None:
        best = checked.given if checked.fits else checked.remedy
        _write_study(console, card, best, overlay, root)
    return checked.fits


@dataclass(frozen=True)
class Losses:
    """Losses on the sample, with the SAE fed as given."""

    clean: float
    """The model's loss, in nats per token."""
    unigram: float
    """The loss of the sample's own token frequencies, in nats per token; a trained model is below.
    """
    score: float | None
    """CE score."""


def _measured(card: Card) -> tuple[Checked, Losses]:
    """Feed the SAE with the sample, and measure it and the model."""
    with tempfile.TemporaryDirectory(prefix="nullsae-") as folder:
        tokens = _tokens(card, Path(folder))
        sample = Sample(_subject(card, tokens), tokens, n_tokens=card.asked.n_tokens)
        given = Feeding(card.site, bool(tokens.n_bos), bos=tokens.bos_name)
        checked = check_feeding(sample, card.sae, given, card.expect)
        fidelity = sample.fidelity(card.sae.to(sample.subject.device), given).totals()
    counts = np.bincount(sample.text.flatten().numpy())
    unigram = float(entropy(counts))
    return checked, Losses(fidelity["ce_clean"], unigram, fidelity["ce_score"])


def _print_answer(console: Console, card: Card, checked: Checked) -> None:
    """Print whether the SAE fits, and how its use differs from what it was made on."""
    said = f"It fits: {figures(checked.given)}."
    if not checked.fits:
        said = f"It does not fit: {reason(checked)}."
    console.print(said, markup=False, soft_wrap=True)
    if (doubted := doubt(checked)) is not None:
        console.print(f"{doubted}.", markup=False, soft_wrap=True)
    for _, sentence in card.differences():
        console.print(f"Differs: {sentence}.", markup=False, soft_wrap=True)


def _print_card(console: Console, card: Card) -> None:
    table = Table(title="The SAE", title_justify="left")
    for head in ("fact", "value", "known from"):
        table.add_column(head, overflow="fold")  # paths, to be read whole
    for fact in card.facts:
        table.add_row(*(escape(visible(text)) for text in (fact.name, fact.value, fact.source)))
    console.print(table)


def _tokens(card: Card, folder: Path) -> Tokens:
    """Prepare a sample of text as a study does."""
    some = {"eval_share": 0.5, "eval_tokens": card.asked.n_tokens}
    some["sae_train_tokens"] = card.context_tokens
    corpus = parse_section(Corpus, corpus_of(card, card.prepend_bos, **some), where="--corpus")
    try:
        with bar("read text", "tokens") as progress:
            prepare_corpus(PrepareCorpusParams(corpus=corpus), CORPUS, folder, progress)
    except UserError as error:
        said = _OF_CONFIG.sub(lambda key: OPTIONS.get(key[1], "--corpus"), str(error))
        raise UserError(said) from None
    return load_tokens(folder / paths.CORPUS_MANIFEST.format(corpus=CORPUS, split="eval"))


def _subject(card: Card, tokens: Tokens) -> Subject:
    """Load the model onto its device."""
    device = device_of(card.asked.device)
    source = parse_section(PretrainedSource, source_of(card), where="--model")
    model: Any = fetch(source).to(device)
    check_tokens(model, tokens, where="--model")
    subject = Subject(model, {"vocab_size": text_config(model).vocab_size}, device)
    check_sites((card.site, card.sae.writes_at(card.site)), len(subject.blocks), where="--site")
    return subject


def _print_figures(console: Console, card: Card, checked: Checked, ce_score: float | None) -> None:
    """Print what was measured next to what was published, the SAE as given first."""
    heads = ("explained variance", "random directions", "L0")
    title = f"Figures on {checked.given.n_tokens:,} tokens, without BOS itself"
    table = Table("fed", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")

    def row(name: str, one: Measured) -> None:
        ev = one.explained_variance
        shown = "" if ev is None else f"{ev:.3f}" if ev > -10 else "below -10"
        table.add_row(name, shown, f"{one.placebo:.3f}", f"{one.l0:.1f}")

    ev, l0 = card.expect.explained_variance, card.expect.l0
    if ev is not None or l0 is not None:
        shown = ("" if figure is None else f"{figure:g}" for figure in (ev, l0))
        table.add_row("expected", next(shown), "", next(shown))
    bos = "with" if checked.given.feeding.prepend_bos else "without"
    row(f"as given: {card.site}, {bos} BOS", checked.given)
    for one in sorted(checked.tried, key=lambda one: one.left):
        if one is not checked.given:
            row(" and ".join(changes(checked.given.feeding, one.feeding)), one)
    console.print(table)
    score = "none: zeroing the site does no clear harm" if ce_score is None else f"{ce_score:.3f}"
    console.print(f"CE score as given: {score}", markup=False)


def _write_study(
    console: Console, card: Card, best: Measured | None, overlay: Path, root: Path
) -> None:
    """Write the overlay of an SAE that fits, as given or as remedied, and print its plan."""
    if best is None or best.feeding.input != AS_THEY_ARE:
        console.print(f"{overlay}: not written; no study can feed the SAE so.", markup=False)
        return
    base_file = study_files(root)[0]
    base = read_yaml(base_file)
    if not isinstance(base, dict):
        raise UserError(f"{base_file}: not a config; --root names the folder of a study")
    study = study_of(card, best, base)
    parse_config(merge(base, study))
    told = f"# A study of {card.asked.pretrained}, written by nullsae check: {figures(best)}.\n"
    write_text(overlay, visible(told) + yaml.safe_dump(study, sort_keys=False, allow_unicode=True))
    is_own = overlay == root / OVERLAY
    words = ["nullsae", "run", *([str(root)] if is_own or root != Path() else [])]
    words += [] if is_own else ["--", "--configfile", str(overlay)]
    console.print(f"{overlay}: written. Run it: {shlex.join(words)}", markup=False, soft_wrap=True)
    print_plan(root, [] if is_own else [overlay])


def _study_of_overlay(overlay: Path, root: Path) -> Path:
    """Return the folder of the study that a new overlay belongs to."""
    if overlay.exists():
        raise UserError(f"--overlay: {str(overlay)!r} exists already; give another name")
    if overlay.name == OVERLAY and root == Path():
        return overlay.parent
    if not any((root / name).is_file() for name in (OVERLAY, BASE)):
        raise UserError(
            f"--overlay: {str(overlay)!r}: {root.absolute()} has no study to merge it into; give "
            f"it a folder of its own, such as {overlay.stem}/{OVERLAY}"
        )
    return root


def study_of(card: Card, best: Measured, base: dict[str, Any]) -> dict[str, Any]:
    """Return the overlay: the SAE, its model and text in place of all entries of the base.

    The same SAE reads every variant's activations, next to placebos that need no training. The
    figures expected of it are the published ones, or else those that were measured.
    """
    hub = corpus_of(card, True)["source"]["kind"] == "hub"
    corpus = corpus_of(card, best.feeding.prepend_bos)
    if hub:
        corpus |= {"sae_train_tokens": HUB_TOKENS, "eval_tokens": HUB_TOKENS // 10}
    measured = {"l0": best.l0, "explained_variance": best.explained_variance}
    expect = card.expect.model_dump(exclude_none=True) or measured
    given = card.asked.pretrained
    is_object = isinstance(given, FromObject)
    recipe: dict[str, Any] = {
        "pretrained": from_anywhere(given)
        if isinstance(given, str)
        else given.model_dump(exclude_defaults=True)
    }
    if card.sae.transcodes:
        ends = (best.feeding.site, card.sae.writes_at(best.feeding.site))
        recipe |= zip(("input_site", "output_site"), map(site_kind, ends), strict=True)
    if accepted := [name for name, _ in card.differences(best.feeding)]:
        recipe["accept_differences"] = accepted
    recipe["expect"] = {name: round(float(value), 4) for name, value in expect.items() if value}
    new: dict[str, dict[str, Any]] = {
        "corpora": {CORPUS: corpus},
        "subjects": {
            SUBJECT: {"corpus": CORPUS, "source": source_of(card), "sites": [best.feeding.site]}
        },
        "saes": {SAE: recipe},
    }
    if not card.sae.transcodes:
        # No training: SAEs trained on nulls here would not have this one's training tokens, and so
        # get no verdict.
        recipe["dictionary"] = "given"
        new["saes"] |= placebos_of(SAE, shows_encoder=not is_object)
    for key in new:
        new[key] = {**dict.fromkeys(base.get(key) or {}), **new[key]}
    # The placebos above are all.
    evaluation = {"gaussian_floors": False, "null_dictionaries": []}
    return {**new, "variants": ["trained", "rerandomized"], "evaluation": evaluation}
