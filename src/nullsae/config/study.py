"""The config: frozen models, no unknown keys, units in names.

The docstring below each field becomes its description in `workflow/schemas/config.schema.json`.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from nullsae.config.activations import Activations
from nullsae.config.autointerp import Autointerp
from nullsae.config.compute import ComputeKey
from nullsae.config.corpora import Corpus
from nullsae.config.endpoints import Endpoint
from nullsae.config.evaluation import Evaluation
from nullsae.config.explainers import AnyExplainer, Explainer, Side
from nullsae.config.latents import Latents
from nullsae.config.llm import Llm
from nullsae.config.pretrained import FromObject
from nullsae.config.randomization import Randomization
from nullsae.config.report import Report
from nullsae.config.saes import Sae
from nullsae.config.scorers import AnyScorer
from nullsae.config.section import Section, fit_into_paths, unique
from nullsae.config.statistics import Statistics
from nullsae.config.subjects import Subject
from nullsae.config.toy import Toy
from nullsae.config.variants import VARIANTS, VariantName

# The explainer, in paths and tables, of a scorer that needs none.
NO_EXPLAINER = "none"
ENTRIES = ("corpora", "subjects", "saes", "explainers", "scorers")


class Config(Section):
    """A study."""

    seed: NonNegativeInt = 0
    """The seed of all randomness."""
    compute: ComputeKey = ComputeKey()
    corpora: Annotated[dict[str, Corpus], Field(min_length=1)]
    subjects: Annotated[dict[str, Subject], Field(min_length=1)]
    variants: Annotated[tuple[VariantName, ...], Field(min_length=1)]
    """The variants of each subject. `trained` must be among them."""
    draws: Annotated[PositiveInt, Field(le=1000)] = 1
    """Independent randomizations of each random variant."""
    randomization: Randomization = Randomization()
    activations: Activations
    saes: Annotated[dict[str, Sae], Field(min_length=1)]
    evaluation: Evaluation = Evaluation()
    latents: Latents = Latents()
    explainers: dict[str, AnyExplainer]
    scorers: dict[str, AnyScorer]
    autointerp: Autointerp = Autointerp()
    llm: Llm = Llm()
    statistics: Statistics = Statistics()
    report: Report = Report()
    toy: Toy | None = None
    """Toy models of superposition, which only `snakemake toy` trains; null for the small default
    sweep."""

    _named = field_validator(*ENTRIES)(fit_into_paths("_.-"))

    @field_validator("variants")
    @classmethod
    def variants_include_trained(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        if "trained" not in variants:
            raise ValueError("'trained' is missing; every contrast is against it")
        return unique(variants)

    @field_validator("explainers")
    @classmethod
    def none_is_taken(cls, explainers: dict[str, Any]) -> dict[str, Any]:
        if NO_EXPLAINER in explainers:
            said = f"{NO_EXPLAINER!r} means scorers that need no explainer; use another name"
            raise ValueError(said)
        return explainers

    @model_validator(mode="after")
    def references_exist(self) -> Self:
        for name, subject in self.subjects.items():
            if subject.corpus not in self.corpora:
                raise ValueError(
                    f"subjects.{name}.corpus: {subject.corpus!r} is not one of corpora "
                    f"({', '.join(self.corpora)})"
                )
            for variant in self.variants:
                if lacking := VARIANTS[variant].lacks(subject.source):
                    raise ValueError(f"subjects.{name}.source.{lacking}")
            corpus = self.corpora[subject.corpus]
            available = corpus.sae_train_tokens
            if available is not None and self.activations.sae_train_tokens > available:
                raise ValueError(
                    f"activations.sae_train_tokens: {self.activations.sae_train_tokens} is more "
                    f"than corpora.{subject.corpus}.sae_train_tokens {available}"
                )
            if self.latents.window_tokens > corpus.context_tokens:
                raise ValueError(
                    f"latents.window_tokens: {self.latents.window_tokens} is more than "
                    f"corpora.{subject.corpus}.context_tokens {corpus.context_tokens}"
                )
        return self

    @model_validator(mode="after")
    def derived_saes_have_a_source(self) -> Self:
        real = [name for name, sae in self.saes.items() if sae.is_real]
        for name, sae in self.saes.items():
            source = sae.origin.source
            if source is None:
                continue
            if source not in real:
                raise ValueError(
                    f"saes.{name}.from: {source!r} is not one of the learned and pretrained SAEs "
                    f"({', '.join(real) or 'none'})"
                )
            if self.saes[source].output_site is not None:
                raise ValueError(
                    f"saes.{name}.from: {source!r} is a transcoder; nulls are not made from those"
                )
            if sae.origin.needs_encoder and isinstance(self.saes[source].pretrained, FromObject):
                raise ValueError(
                    f"saes.{name}.from: {source!r} is a Python object, which shows no encoder rows "
                    f"to turn; dictionary 'rate_matched_random' needs none"
                )
            seeds = self.saes[source].seeds
            for seed in sae.seeds if len(seeds) > 1 else ():
                if seed not in seeds:
                    raise ValueError(
                        f"saes.{name}.seeds: {seed} is not one of the seeds of {source} "
                        f"({', '.join(map(str, seeds))}), from which it is made"
                    )
        return self

    @model_validator(mode="after")
    def matched_saes_are_pretrained(self) -> Self:
        # Transcoders are left out: they exist at some of the sites only.
        given = [n for n, sae in self.saes.items() if sae.pretrained and not sae.output_site]
        for name, sae in self.saes.items():
            if sae.match_l0_of not in (None, *given):
                raise ValueError(
                    f"saes.{name}.match_l0_of: {sae.match_l0_of!r} is not one of the pretrained "
                    f"SAEs ({', '.join(given) or 'none'})"
                )
        return self

    @model_validator(mode="after")
    def explainers_and_scorers_fit(self) -> Self:
        for name, explainer in self.explainers.items():
            if explainer.exchanges is not None:
                base = self.explainers.get(explainer.exchanges)
                if base is None or base.exchanges is not None:
                    raise ValueError(
                        f"explainers.{name}.of: {explainer.exchanges!r} is not an explainer that "
                        f"writes explanations"
                    )
        for name, scorer in self.scorers.items():
            judged = self.explainers.get(scorer.scores_of or "")
            if scorer.scores_of is not None and not (judged and judged.made_elsewhere):
                raise ValueError(
                    f"scorers.{name}.of: {scorer.scores_of!r} is not an explainer of kind import"
                )
            kinds = self.latents.silent_windows
            if scorer.negatives not in (*kinds, "misplaced", "given"):
                raise ValueError(
                    f"scorers.{name}.negatives: {scorer.negatives!r} is not one of "
                    f"latents.silent_windows ({', '.join(kinds)})"
                )
        paired = {name for pair in self.scored_pairs() for name in pair}
        for name, scorer in self.scorers.items():
            if self.explainers and name not in paired:
                raise ValueError(
                    f"scorers.{name}: kind {scorer.name} judges explanations of the {scorer.side} "
                    f"side, but no explainer writes any"
                )
        for explainer_name, name in self.scored_pairs():
            try:
                self.asked(explainer_name, name)
            except ValueError as error:
                raise ValueError(f"scorers.{name}.{error}") from None
        for key, endpoint in self.endpoints().items():
            if (problem := endpoint.sent_in_clear(self.llm.insecure_hosts)) is not None:
                raise ValueError(f"{key}.{problem}")
            if self.llm.max_cost_usd is not None and endpoint.model not in self.llm.prices:
                raise ValueError(
                    f"llm.prices: no price for {endpoint.model!r} ({key}.model), but "
                    f"llm.max_cost_usd is set"
                )
        return self

    @property
    def answering_saes(self) -> tuple[str, ...]:
        """The SAEs that a study's answer about models is based on: those that are neither null
        dictionaries nor made from another SAE, or all if there are no such SAEs.
        """
        real = [name for name, sae in self.saes.items() if sae.is_real]
        return tuple(real or self.saes)

    def writer(self, explainer: str) -> Explainer | None:
        """Return who wrote an explainer's explanations: itself, or the explainer it exchanges."""
        if explainer == NO_EXPLAINER:
            return None
        found = self.explainers[explainer]
        return found if found.exchanges is None else self.explainers[found.exchanges]

    def side(self, explainer: str) -> Side:
        """Return the side that an explainer's explanations are about."""
        writer = self.writer(explainer)
        return "input" if writer is None else writer.side

    def asked(self, explainer: str, scorer: str) -> Endpoint | None:
        """Return the endpoint that a scorer asks about an explainer's explanations, or None."""
        return self.scorers[scorer].asked(self.writer(explainer))

    def endpoints(self) -> dict[str, Endpoint]:
        """Return all endpoints, by the config keys that name them."""
        named = {f"explainers.{name}": found.endpoint for name, found in self.explainers.items()}
        named |= {f"scorers.{name}.judge": found.endpoint for name, found in self.scorers.items()}
        return {key: endpoint for key, endpoint in named.items() if endpoint is not None}

    def scored_pairs(self) -> list[tuple[str, str]]:
        """Return each (explainer, scorer) of one side; scorers of none come last, once."""
        judging = [name for name, scorer in self.scorers.items() if scorer.needs_explanations]
        pairs = [
            (explainer, name)
            for explainer in self.explainers
            for name in judging
            for writer in [self.writer(explainer)]
            if writer is not None and self.scorers[name].judges(explainer, writer)
        ]
        return pairs + [(NO_EXPLAINER, name) for name in self.scorers if name not in judging]

    def draws_of(self, variant: str, subject: str) -> range:
        """Return the draws of a subject's variant: one if it is fixed, none if it is missing."""
        return VARIANTS[variant].draws(self.subjects[subject].source, self.draws)
