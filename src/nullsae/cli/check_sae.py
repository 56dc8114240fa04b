"""`nullsae check`: what an SAE is, whether it fits its model, and the study that it makes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nullsae import paths
from nullsae.config.corpora import Corpus
from nullsae.config.hooks import site_of_hook
from nullsae.config.made_on import UsedOn, differences
from nullsae.config.model_files import is_local
from nullsae.config.parse import check_sites, parse_config, parse_section
from nullsae.config.plain import read_yaml
from nullsae.config.pretrained import Difference, FromSaeLens, Pretrained, SaeLensRelease
from nullsae.config.read import merge, study_files
from nullsae.config.saelens_list import published
from nullsae.config.saes import Expect
from nullsae.config.sites import SITE
from nullsae.config.subjects import PretrainedSource
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.core.progress import bar
from nullsae.core.visible import visible
from nullsae.corpus.prepare import prepare_corpus
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.corpus import PrepareCorpusParams
from nullsae.metrics.feeding import AS_THEY_ARE, Checked, Feeding, Measured, Sample, check_feeding
from nullsae.metrics.gate import changes, figures, reason
from nullsae.planning.show import print_plan
from nullsae.sae.exchange.pretrained import read_with_origin
from nullsae.subjects.families import text_config
from nullsae.subjects.loading import Subject, fetch
from nullsae.subjects.publish import check_tokens

# Names in the study that is written.
CORPUS, SUBJECT, SAE = "text", "subject", "published"
PLACEBOS = ("rotated", "rate_matched_random")
CONTEXT_TOKENS = 128
HUB_TOKENS = 1_000_000
# TransformerLens' names of models that are no hub ids.
HUB_IDS = {"gpt2-small": "gpt2"}
TEXT_FILES = (".txt", ".jsonl", ".ndjson", ".parquet", ".gz", ".bz2", ".lz4", ".zst")


@dataclass(frozen=True)
class Fact:
    """One line of the card."""

    name: str
    value: str
    source: str
    """Where it is known from."""


@dataclass(frozen=True)
class Asked:
    """What the command line says; None where the SAE's own files are to say it."""

    pretrained: Pretrained
    model: str | None = None
    site: str | None = None
    prepend_bos: bool | None = None
    context_tokens: int | None = None
    corpus: str = "auto"
    n_tokens: int = 8192
    expect: Expect = field(default_factory=Expect)
    device: str = "auto"


def pretrained_of(sae: str, sae_id: str | None) -> Pretrained:
    """Where an SAE comes from, as `saes.*.pretrained` says it."""
    if sae_id is None:
        return sae
    return FromSaeLens(saelens=SaeLensRelease(release=sae, sae_id=sae_id))


def expected(text: str) -> Expect:
    """Figures such as `l0=71,explained_variance=0.8`.

    Raises:
        UserError: an unknown name, or no number.
    """
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"--expect: {part!r} is not NAME=NUMBER, such as l0=71") from None
    return parse_section(Expect, found, where="--expect")


class Card:
    """What an SAE is, and where each fact comes from."""

    def __init__(self, asked: Asked) -> None:
        """Read it.

        Raises:
            UserError: it cannot be had, or nobody says on which model or at which site it reads.
        """
        self.asked = asked
        if asked.site is not None and not SITE.match(asked.site):
            raise UserError(f"--site: {asked.site!r} is not a site, such as resid_post.3")
        text = asked.pretrained if isinstance(asked.pretrained, str) else ""
        if "{" in text and asked.site is None:
            raise UserError("--site: missing; it fills in {site} and {layer}")
        self.sae, self.made_on = read_with_origin(asked.pretrained, asked.site, where="SAE")
        if self.sae.coding.reads_tokens:
            raise UserError(
                "SAE: it looks up tokens and reads no activations; there is nothing to check"
            )
        self.facts: list[Fact] = []
        kind, k = self.sae.architecture, self.sae.k
        self._note("architecture", f"{kind}, k {k}" if k else kind, "its files")
        self._note(
            "width", f"{self.sae.n_latents:,} latents of {self.sae.d_model:,}", "its weights"
        )
        self._note("normalization", self.sae.normalization, "its files")
        made = self.made_on
        hook = None if made.hook is None else site_of_hook(made.hook)
        self.site = self._taken("site", asked.site, hook, "--site", shown=made.hook)
        model = None if made.model is None else HUB_IDS.get(made.model, made.model)
        self.model = self._taken("model", asked.model, model, "--model", shown=made.model)
        self._settle_context()
        self._settle_bos()
        for name in ("revision", "data_set", "training_tokens"):
            if (value := getattr(made, name)) is not None:
                shown = f"{value:,}" if isinstance(value, int) else value
                self._note(name.replace("_", " "), shown, "its files")
        for key, value in made.weight_processing.items():
            self._note(f"model_from_pretrained_kwargs.{key}", str(value), "its files")
        self.expect = self._expected()

    def differences(self, feeding: Feeding | None = None) -> list[tuple[Difference, str]]:
        """In what its use here, fed as asked or otherwise, differs from what it was made on."""
        bos = None if self.prepend_bos == "auto" else bool(self.prepend_bos)
        source = _corpus(self, True)["source"]
        used = UsedOn(
            subject=SUBJECT,
            corpus=CORPUS,
            model=None if is_local(self.model) else self.model,
            revision=_source(self).get("revision"),
            context_tokens=self.context_tokens,
            prepend_bos=bos if feeding is None else feeding.prepend_bos,
            data_set=source["path"] if source["kind"] == "hub" else None,
        )
        site = self.site if feeding is None else feeding.site
        return [*differences(self.made_on, used, site)]

    def _note(self, name: str, value: str, source: str) -> None:
        self.facts.append(Fact(name, value, source))

    def _taken(
        self, name: str, given: str | None, known: str | None, option: str, *, shown: str | None
    ) -> str:
        """What an option says or else the SAE's files do."""
        own = f"its files: {shown}" if shown is not None else "not in its files"
        if given is None and known is None:
            what = f"no known site ({own})" if shown else f"no {name}"
            raise UserError(f"{option}: missing, and the SAE's files name {what}")
        self._note(name, given or known or "", f"{option} ({own})" if given else own)
        return given or known or ""

    def _settle_context(self) -> None:
        given, known = self.asked.context_tokens, self.made_on.context_tokens
        self.context_tokens = given or known or CONTEXT_TOKENS
        source = "--context-tokens" if given else "its files" if known else "by default"
        self._note("context", f"{self.context_tokens} tokens", source)

    def _settle_bos(self) -> None:
        given, known = self.asked.prepend_bos, self.made_on.prepend_bos
        self.prepend_bos: bool | str = given if given is not None else "auto"
        source = "--bos" if given is not None else "by default: as the tokenizer has it"
        if given is None and known is not None:
            self.prepend_bos, source = known, "its files"
        self._note("BOS", str(self.prepend_bos).lower(), source)

    def _expected(self) -> Expect:
        """Published figures: those of the command line, and of the rest SAELens' list's."""
        found = published(self.asked.pretrained, "SAE")
        for name, value in found.items():
            self._note(f"published {name}", f"{value:g}", "SAELens' list")
        own = self.asked.expect.model_dump(exclude_none=True)
        return Expect(**{**found, **own})


def check_sae(asked: Asked, *, overlay: Path | None, root: Path) -> bool:
    """Print what an SAE is and whether it fits; write the study that it makes; whether it fits.

    Args:
        asked: what the command line says.
        overlay: file to write, merged over the base config of `root`; its plan is printed.
        root: folder of the study.

    Raises:
        UserError: SAE, model or text cannot be had, or do not go together at all.
    """
    console = Console() if Console().is_terminal else Console(width=120)
    card = Card(asked)
    _print_card(console, card)
    for _, sentence in card.differences():
        console.print(f"Differs: {sentence}.", markup=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="nullsae-") as folder:
        tokens = _tokens(card, Path(folder))
        sample = Sample(_subject(card, tokens), tokens, n_tokens=asked.n_tokens)
        bos = bool(tokens.n_bos)
        given = Feeding(card.site, bos)
        checked = check_feeding(sample, card.sae, given, card.expect)
        fidelity = sample.fidelity(card.sae.to(sample.subject.device), given).totals()
    _print_figures(console, card, checked, fidelity["ce_score"])
    best = checked.given if checked.fits else checked.remedy
    if checked.fits:
        console.print(f"It fits: {figures(checked.given)}.", markup=False)
    else:
        console.print(f"It does not fit: {reason(checked)}.", markup=False, soft_wrap=True)
    if overlay is not None:
        _write_study(console, card, best, overlay, root)
    return checked.fits


def _print_card(console: Console, card: Card) -> None:
    table = Table("fact", "value", "known from", title="The SAE", title_justify="left")
    for fact in card.facts:
        table.add_row(*(escape(visible(text)) for text in (fact.name, fact.value, fact.source)))
    console.print(table)


def _source(card: Card) -> dict[str, Any]:
    """The subject's source in a config."""
    revision = card.made_on.revision
    known = card.asked.model is None and revision is not None
    return {"kind": "pretrained", "path": card.model, **({"revision": revision} if known else {})}


def _corpus(card: Card, prepend_bos: bool | str, **more: Any) -> dict[str, Any]:
    """The corpus in a config."""
    text = card.asked.corpus
    source: dict[str, Any] = {"kind": "hub", "path": text}
    if text in ("auto", "sotu", "stdlib"):
        source = {"kind": "builtin", "name": text}
    elif text.lower().endswith(TEXT_FILES):
        source = {"kind": "files", "paths": [text]}
    tokenizer = {k: v for k, v in _source(card).items() if k in ("kind", "path", "revision")}
    cut = {"context_tokens": card.context_tokens, "prepend_bos": prepend_bos}
    return {"source": source, "tokenizer": tokenizer, **cut, **more}


def _tokens(card: Card, folder: Path) -> Tokens:
    """A sample of text, cut as a study cuts it."""
    some = {"eval_share": 0.5, "eval_tokens": card.asked.n_tokens}
    some["sae_train_tokens"] = card.context_tokens
    corpus = parse_section(Corpus, _corpus(card, card.prepend_bos, **some), where="--corpus")
    with bar("read text", "tokens") as progress:
        prepare_corpus(PrepareCorpusParams(corpus=corpus), CORPUS, folder, progress)
    return load_tokens(folder / paths.CORPUS_MANIFEST.format(corpus=CORPUS, split="eval"))


def _subject(card: Card, tokens: Tokens) -> Subject:
    """The model, on its device."""
    device = device_of(card.asked.device)
    source = parse_section(PretrainedSource, _source(card), where="--model")
    model: Any = fetch(source).to(device)
    check_tokens(model, tokens, where="--model")
    subject = Subject(model, {"vocab_size": text_config(model).vocab_size}, device)
    check_sites((card.site,), len(subject.blocks), where="--site")
    return subject


def _print_figures(console: Console, card: Card, checked: Checked, ce_score: float | None) -> None:
    """What was measured, as it is fed first, beside what was published."""
    heads = ("explained variance", "random directions", "L0")
    title = f"Figures on {checked.given.n_tokens:,} tokens, BOS itself left out"
    table = Table("fed", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")

    def row(name: str, one: Measured) -> None:
        ev = "" if one.explained_variance is None else f"{one.explained_variance:.3f}"
        table.add_row(name, ev, f"{one.placebo:.3f}", f"{one.l0:.1f}")

    ev, l0 = card.expect.explained_variance, card.expect.l0
    table.add_row("expected", "" if ev is None else f"{ev:g}", "", "" if l0 is None else f"{l0:g}")
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
    """Write the overlay of an SAE that fits, or would, and print what differs and its plan."""
    if best is None or best.feeding.input != AS_THEY_ARE:
        console.print(f"{overlay}: not written; no study can feed it so.", markup=False)
        return
    base_file = study_files(root)[0]
    base = read_yaml(base_file)
    if not isinstance(base, dict):
        raise UserError(f"{base_file}: not a config; --root names the folder of a study")
    study = study_of(card, best, base)
    parse_config(merge(base, study))
    told = f"# A study of {card.asked.pretrained}, written by nullsae check: {figures(best)}.\n"
    write_text(overlay, visible(told) + yaml.safe_dump(study, sort_keys=False))
    console.print(f"{overlay}: written; run it with --configfile {overlay}", markup=False)
    print_plan(root, [overlay])


def study_of(card: Card, best: Measured, base: dict[str, Any]) -> dict[str, Any]:
    """The overlay: entries of the base are dropped, what the SAE fits stands in their place.

    The figures that are expected of it are the published ones, or else those that were measured.
    """
    hub = _corpus(card, True)["source"]["kind"] == "hub"
    corpus = _corpus(card, best.feeding.prepend_bos)
    if hub:
        corpus |= {"sae_train_tokens": HUB_TOKENS, "eval_tokens": HUB_TOKENS // 10}
    measured = {"l0": best.l0, "explained_variance": best.explained_variance}
    expect = card.expect.model_dump(exclude_none=True) or measured
    given = card.asked.pretrained
    recipe: dict[str, Any] = {"pretrained": given if isinstance(given, str) else given.model_dump()}
    if accepted := [name for name, _ in card.differences(best.feeding)]:
        recipe["accept_differences"] = accepted
    recipe["expect"] = {name: round(float(value), 4) for name, value in expect.items() if value}
    new: dict[str, dict[str, Any]] = {
        "corpora": {CORPUS: corpus},
        "subjects": {
            SUBJECT: {"corpus": CORPUS, "source": _source(card), "sites": [best.feeding.site]}
        },
        "saes": {SAE: recipe},
    }
    if not card.sae.transcodes:
        # Nulls of the dictionary that take no training.
        new["saes"] |= {name: {"dictionary": name, "from": SAE} for name in PLACEBOS}
    for key in new:
        new[key] = {**dict.fromkeys(base.get(key) or {}), **new[key]}
    return {**new, "variants": ["trained", "rerandomized"]}
