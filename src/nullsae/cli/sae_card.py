"""The SAE that `nullsae check` checks, and what its files and the command line say about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nullsae.config.hooks import site_of_hook
from nullsae.config.made_on import UsedOn, differences, hub_id
from nullsae.config.model_files import from_anywhere, is_local
from nullsae.config.model_size import subject_shape
from nullsae.config.parse import parse_section
from nullsae.config.pretrained import (
    IMPORT_PATH,
    Difference,
    FromObject,
    FromSaeLens,
    Pretrained,
    SaeLensRelease,
)
from nullsae.config.saelens_list import published
from nullsae.config.saes import Expect
from nullsae.config.sites import PROJECTED, SITE, site_kind
from nullsae.config.subjects import PretrainedSource
from nullsae.core.errors import UserError
from nullsae.metrics.feeding import Feeding
from nullsae.planning.guess import corpus_source
from nullsae.sae.exchange.pretrained import read_with_origin

# Names in the written study.
CORPUS, SUBJECT, SAE = "text", "subject", "published"
CONTEXT_TOKENS = 128


@dataclass(frozen=True)
class Fact:
    """One line of the card."""

    name: str
    value: str
    source: str
    """Where the value is known from."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; None leaves a value to the SAE's files."""

    pretrained: Pretrained
    model: str | None = None
    site: str | None = None
    output_site: str | None = None
    """The site that a Python object writes, if it is a transcoder."""
    prepend_bos: bool | None = None
    context_tokens: int | None = None
    corpus: str = "auto"
    n_tokens: int = 8192
    expect: Expect = field(default_factory=Expect)
    device: str = "auto"


def pretrained_of(
    sae: str,
    sae_id: str | None,
    *,
    site: str | None = None,
    model: str | None = None,
    d_model: int | None = None,
) -> Pretrained:
    """Return where an SAE comes from, in the form of `saes.*.pretrained`.

    An import path is a Python object, unless a folder has that name. Its width is that of the
    model's residual stream unless it is given.

    Raises:
        UserError: an option that a Python object needs is missing, or its module has no file.
    """
    if sae_id is not None:
        return FromSaeLens(saelens=SaeLensRelease(release=sae, sae_id=sae_id))
    if not IMPORT_PATH.fullmatch(sae) or Path(sae).exists():
        return sae
    if site is None or model is None:
        option = "--site" if site is None else "--model"
        raise UserError(f"{option}: missing; a Python object, such as {sae}, has no record of it")
    if d_model is None:
        if site_kind(site) in PROJECTED:
            raise UserError(f"--d-model: missing; give the dimensions of {site}, which {sae} reads")
        source = parse_section(PretrainedSource, {"kind": "pretrained", "path": model}, where="")
        d_model = subject_shape(source, where="--model", fetch=True).d_model
    given = parse_section(FromObject, {"object": sae, "d_model": d_model}, where="SAE")
    given.source_file("SAE")
    return given


def expected(text: str) -> Expect:
    """Parse figures such as `l0=71,explained_variance=0.8`.

    Raises:
        UserError: a name is unknown, or a value is not a number.
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
    """Facts about an SAE, each with its source."""

    def __init__(self, asked: Asked) -> None:
        """Read the SAE.

        Raises:
            UserError: it is not available, or its model or site is unknown.
        """
        self.asked = asked
        for name, site in (("site", asked.site), ("output-site", asked.output_site)):
            if site is not None and not SITE.match(site):
                raise UserError(f"--{name}: {site!r} is not a site, such as resid_post.3")
        is_object = isinstance(asked.pretrained, FromObject)
        if asked.output_site is not None and not is_object:
            raise UserError("--output-site: only for a Python object; an SAE's files record it")
        text = asked.pretrained if isinstance(asked.pretrained, str) else ""
        if "{" in text and asked.site is None:
            raise UserError("--site: missing; it fills in {site} and {layer}")
        self.sae, self.made_on = read_with_origin(
            asked.pretrained, asked.site, where="SAE", output_site=asked.output_site or ""
        )
        if self.sae.coding.reads_tokens:
            raise UserError(
                "SAE: it looks up tokens instead of reading activations; there is nothing to check"
            )
        self.facts: list[Fact] = []
        kind, k = self.sae.architecture, self.sae.k
        width = f"{self.sae.n_latents:,} latents of {self.sae.d_model:,}"
        if is_object:
            self._note("object", str(asked.pretrained), "the command line; it is run as you")
            self._note("width", width, "what it gives")
        else:
            self._note("architecture", f"{kind}, k {k}" if k else kind, "its files")
            self._note("width", width, "its weights")
            self._note("normalization", self.sae.normalization, "its files")
        made = self.made_on
        hook = None if made.hook is None else site_of_hook(made.hook)
        self.site = self._taken("site", asked.site, hook, "--site", shown=made.hook)
        model = None if made.model is None else hub_id(made.model)
        self.model = self._taken("model", asked.model, model, "--model", shown=made.model)
        if self.sae.transcodes:
            written = "--output-site" if is_object else "its files"
            self._note("output site", self.sae.writes_at(self.site), written)
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
        """Return how its use here, fed as asked or as given, differs from what it was made on."""
        bos = None if self.prepend_bos == "auto" else bool(self.prepend_bos)
        source = corpus_of(self, True)["source"]
        used = UsedOn(
            subject=SUBJECT,
            corpus=CORPUS,
            model=None if is_local(self.model) else self.model,
            revision=source_of(self).get("revision"),
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
        """Return the option's value, or else that of the SAE's files."""
        own = f"its files: {shown}" if shown is not None else "not in its files"
        if given is None and known is None:
            what = f"no known site ({own})" if shown else f"no {name}"
            raise UserError(f"{option}: missing, and the SAE's files name {what}")
        source = option if isinstance(self.asked.pretrained, FromObject) else f"{option} ({own})"
        self._note(name, given or known or "", source if given else own)
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
        """Return published figures: those of the command line, else those of SAELens' list."""
        found = published(self.asked.pretrained, "SAE")
        for name, value in found.items():
            self._note(f"published {name}", f"{value:g}", "SAELens' list")
        own = self.asked.expect.model_dump(exclude_none=True)
        return Expect(**{**found, **own})


def source_of(card: Card) -> dict[str, Any]:
    """Return the subject's source for a config."""
    revision = card.made_on.revision
    known = card.asked.model is None and revision is not None
    of_hub = {"revision": revision} if known else {}
    return {"kind": "pretrained", "path": from_anywhere(card.model), **of_hub}


def corpus_of(card: Card, prepend_bos: bool | str, **more: Any) -> dict[str, Any]:
    """Return the corpus for a config."""
    source = corpus_source(card.asked.corpus)
    tokenizer = {k: v for k, v in source_of(card).items() if k in ("kind", "path", "revision")}
    cut = {"context_tokens": card.context_tokens, "prepend_bos": prepend_bos}
    return {"source": source, "tokenizer": tokenizer, **cut, **more}
