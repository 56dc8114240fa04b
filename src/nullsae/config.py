"""The config: frozen models, unknown keys forbidden, units in names.

The line below each field says what it means; it becomes the field's description in
`workflow/schemas/config.schema.json`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nullsae.inputs import (
    BuiltinSource,
    FilesSource,
    FloatType,
    GgufSource,
    GgufTokenizer,
    HubSource,
    PretrainedSource,
    PretrainedTokenizer,
    Section,
    TrainedTokenizer,
    TrainSource,
    unique,
)
from nullsae.judges import (
    AskingScorer,
    Explainer,
    IntruderScorer,
    LexicalExplainer,
    Llm,
    OpenAIExplainer,
    Scorer,
    SilentKind,
    SwappedExplainer,
)
from nullsae.outputs import Report, Share, Statistics
from nullsae.recipes import Sae
from nullsae.sites import HOW, PATTERN
from nullsae.toys import Toy

VariantName = Literal[
    "trained",
    "step0",
    "fresh_init",
    "rerandomized",
    "rerandomized_keep_embeddings",
    "permuted_weights",
    "spectrum_matched",
    "cascade",
    "permuted_embeddings",
    "rotated_embeddings",
    "noise_embeddings",
    "gaussian",
]
# Variants that are as they are: of the others, `draws` says how many independent ones are made.
FIXED_VARIANTS = ("trained", "step0")
# Stands in paths and tables for the explainer of a scorer that needs none.
NO_EXPLAINER = "none"
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


class Compute(Section):
    threads: PositiveInt = 1
    """CPU threads of each numerical job. Rounding depends on it, so it stands here: --cores only
    decides how many jobs run side by side, never what they compute."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """`auto` takes CUDA when there is one; else `cpu`, `cuda` or `cuda:N`. With `cpu` no job asks
    for a GPU, so that as many run side by side as there are cores."""


class Corpus(Section):
    source: BuiltinSource | HubSource | FilesSource = Field(discriminator="kind")
    tokenizer: TrainedTokenizer | PretrainedTokenizer | GgufTokenizer = Field(discriminator="kind")
    context_tokens: Annotated[int, Field(ge=8)] = 128
    """Length of the contexts that documents, joined by EOS, are packed into."""
    eval_share: Share = 0.05
    """Share of the documents that go to `eval`, by a hash of each document's text."""
    sae_train_tokens: PositiveInt | None = None
    """Tokens of the `sae_train` split, in whole contexts; null for all there are."""
    eval_tokens: PositiveInt | None = None
    """Tokens of the `eval` split, in whole contexts; null for all there are."""

    @model_validator(mode="after")
    def streams_have_an_end(self) -> Self:
        endless = isinstance(self.source, HubSource) and self.source.streaming
        if endless and (self.sae_train_tokens is None or self.eval_tokens is None):
            raise ValueError("a streamed source needs numbers in sae_train_tokens and eval_tokens")
        return self


class Subject(Section):
    corpus: str
    """Name of the corpus (key of `corpora`) whose tokens the subject reads."""
    source: TrainSource | PretrainedSource | GgufSource = Field(discriminator="kind")
    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    """Where activations are read: `resid_post.L` (output of block L, counted from 0),
    `resid_pre.L`, `attn_out.L`, `mlp_out.L`, `embed`. In the place of L: `*` for all blocks, `-1`
    for the last, `0..8` for a range with both ends, `0..-1..4` for every fourth."""

    @field_validator("sites")
    @classmethod
    def sites_are_known(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        for site in sites:
            if not PATTERN.match(site):
                raise ValueError(f"{site!r} is not a site; {HOW}")
        return unique(sites)


class Randomization(Section):
    norm_parameters: Literal["rerandomize", "keep"] = "rerandomize"
    """What `rerandomized*`, `permuted_weights`, `spectrum_matched` and `cascade` do with the gains
    and biases of the normalization layers."""
    embedding_noise_std: PositiveFloat = 1.0
    """Standard deviation of the noise that replaces embeddings in `noise_embeddings`."""
    first_random_block: NonNegativeInt | None = None
    """`cascade` keeps the blocks before this one; by default the first half of them."""


class Activations(Section):
    mode: Literal["cache", "stream"] = "cache"
    """`cache` keeps all activations of `sae_train` on disk. `stream` keeps the first
    `fitted_tokens` and trains all SAEs of a variant in one job, on live forward passes."""
    sae_train_tokens: PositiveInt
    """Tokens of `sae_train` that SAEs are trained on; `eval` is cached whole in either mode."""
    fitted_tokens: PositiveInt = 1_048_576
    """`stream`: tokens of `sae_train` that are cached nevertheless, for what is fitted rather
    than trained: token-lookup floor, principal components, the `gaussian` variant."""
    sites_together: bool = True
    """`stream`: one job for all SAEs of a variant, whose weights and optimizers must then fit in
    memory together; false for a job per site, each with forward passes of its own, to the same
    bits."""
    shared_pass: bool = False
    """Train all SAEs of a site in one job that reads its activations once, to the same bits."""
    dtype: FloatType = "bfloat16"
    """Precision on disk."""
    shard_tokens: PositiveInt = 65_536
    """Tokens in a shard, which `sae_train` tokens are permuted within. In `stream` mode as many
    are held in memory, at all sites."""
    batch_contexts: PositiveInt = 32
    """Contexts in one forward pass."""
    chunks: PositiveInt = 1
    """Jobs that share the capture of each split; the result is the same."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of `sae_train` whose activations are kept on disk."""
        kept = self.sae_train_tokens if self.mode == "cache" else self.fitted_tokens
        return min(kept, self.sae_train_tokens)


class Evaluation(Section):
    fidelity_tokens: PositiveInt = 16_384
    """Tokens of `eval` for cross-entropy and KL with the SAE spliced in (four forward passes), in
    whole contexts spread evenly over the split."""
    cross_tokens: PositiveInt | None = None
    """Tokens of `eval` on which each SAE is also evaluated on the other variants' activations
    (table `cross_evaluation`); null for none."""
    matching_latents: PositiveInt = 2048
    """Latents of an SAE, drawn at random, that are matched one to one with all those of another
    (table `overlap`); SAEs with no more are matched whole."""
    gaussian_floors: bool = False
    """Train each recipe also on Gaussian data with the mean and covariance of each variant's own
    activations (`gaussian@variant` in the tables): what an SAE explains beyond its floor is not
    explained by the covariance. Not for `token_lookup` and `pretrained`."""


class Latents(Section):
    n_sampled: PositiveInt = 50
    """Latents drawn at random, per SAE, among those that pass the filter."""
    min_firings: PositiveInt = 200
    """Filter: firings in the whole of `eval`."""
    min_pool_windows: PositiveInt = 10
    """Filter: active and silent windows in each pool (explaining, scoring)."""
    window_tokens: Annotated[int, Field(ge=2)] = 32
    """Length of a window. Windows that touch two documents are left out and counted."""
    windows: Literal["fixed", "centred"] = "fixed"
    """Where active windows lie. Both start from cells of a grid over each context. `fixed`: the
    cell. `centred`: around the largest activation in the cell, shifted to stay in its context and
    document; of two that overlap, the stronger. Silent windows are cells."""
    skip_start_tokens: NonNegativeInt = 0
    """Firings on so many tokens at the start of each context count as none."""
    skip_end_of_text: bool = False
    """Firings on the token that ends documents count as none."""
    explain_active_windows: PositiveInt = 40
    """Active windows shown to an explainer, drawn at random."""
    explain_silent_windows: PositiveInt = 40
    """Silent windows shown to an explainer."""
    score_active_windows: PositiveInt = 100
    """Active windows that a scorer judges, in equal numbers from `n_quantiles`."""
    score_silent_windows: PositiveInt = 100
    """Silent windows that a scorer judges, of each kind in `silent_windows`."""
    silent_windows: Annotated[tuple[SilentKind, ...], Field(min_length=1)] = ("random",)
    """Kinds of silent windows drawn for scoring, of which each scorer takes one. `random`: any.
    `co_occurring`: other latents fire there that often fire with this one. `nearest`: the tokens
    of an active window, as far as they go, with this latent silent."""
    n_quantiles: PositiveInt = 10
    """Equal-count slices of the active windows, ranked by their largest activation."""
    top_windows: NonNegativeInt = 10
    """The strongest windows of each sampled latent, kept for people to look at."""

    @field_validator("silent_windows")
    @classmethod
    def kinds_are_named_once(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        return unique(kinds)


class Autointerp(Section):
    latents_per_job: PositiveInt | None = None
    """Latents of an SAE that one job explains or judges, where that asks or runs a language model;
    null for all in one job. The result is the same."""


class Config(Section):
    """A study."""

    seed: NonNegativeInt = 0
    """The root of all randomness."""
    compute: Compute = Compute()
    corpora: Annotated[dict[str, Corpus], Field(min_length=1)]
    subjects: Annotated[dict[str, Subject], Field(min_length=1)]
    variants: Annotated[tuple[VariantName, ...], Field(min_length=1)]
    """What stands beside the trained subject. `trained` must be among them."""
    draws: PositiveInt = 1
    """Independent randomizations of each random variant."""
    randomization: Randomization = Randomization()
    activations: Activations
    saes: Annotated[dict[str, Sae], Field(min_length=1)]
    evaluation: Evaluation = Evaluation()
    latents: Latents = Latents()
    explainers: dict[str, Explainer]
    scorers: dict[str, Scorer]
    autointerp: Autointerp = Autointerp()
    llm: Llm = Llm()
    statistics: Statistics = Statistics()
    report: Report = Report()
    toy: Toy | None = None
    """Toy models of superposition, which `snakemake toy` alone trains; null for the small default
    sweep."""

    @field_validator("corpora", "subjects", "saes", "explainers", "scorers")
    @classmethod
    def names_fit_into_paths(cls, section: dict[str, Any]) -> dict[str, Any]:
        for name in section:
            if not NAME.match(name):
                raise ValueError(
                    f"{name!r} is not a name; use letters, digits, '_', '.', '-': "
                    f"it becomes a folder"
                )
        return section

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
            raise ValueError(
                f"{NO_EXPLAINER!r} stands for scorers that need no explainer; take another name"
            )
        return explainers

    @model_validator(mode="after")
    def references_exist(self) -> Self:
        for name, subject in self.subjects.items():
            if subject.corpus not in self.corpora:
                raise ValueError(
                    f"subjects.{name}.corpus: {subject.corpus!r} is not one of corpora "
                    f"({', '.join(self.corpora)})"
                )
            if (
                not isinstance(subject.source, TrainSource)
                and "step0" in self.variants
                and getattr(subject.source, "step0_revision", None) is None
            ):
                raise ValueError(
                    f"subjects.{name}.source.step0_revision: missing, and variants names step0; "
                    f"give the revision of the untrained weights, or fresh_init instead of step0"
                )
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
    def explainers_and_scorers_fit(self) -> Self:
        for name, explainer in self.explainers.items():
            if isinstance(explainer, SwappedExplainer):
                base = self.explainers.get(explainer.of)
                if base is None or isinstance(base, SwappedExplainer):
                    raise ValueError(
                        f"explainers.{name}.of: {explainer.of!r} is not an explainer that writes "
                        f"explanations"
                    )
        for name, scorer in self.scorers.items():
            kinds = self.latents.silent_windows
            if scorer.negatives not in (*kinds, "misplaced"):
                raise ValueError(
                    f"scorers.{name}.negatives: {scorer.negatives!r} is not one of "
                    f"latents.silent_windows ({', '.join(kinds)})"
                )
        if self.llm.max_cost_usd is not None:
            for key, model in self.asked_models().items():
                if model not in self.llm.prices:
                    raise ValueError(
                        f"llm.prices: no price for {model!r} ({key}), and llm.max_cost_usd is set"
                    )
        return self

    def writer(self, explainer: str) -> LexicalExplainer | OpenAIExplainer:
        """Who wrote an explainer's explanations: itself, or whose it exchanges."""
        found = self.explainers[explainer]
        if isinstance(found, SwappedExplainer):
            found = self.explainers[found.of]
        assert not isinstance(found, SwappedExplainer)
        return found

    def asked_models(self) -> dict[str, str]:
        """Names of the models behind endpoints, by the config key that names them."""
        found = {
            f"explainers.{name}.model": explainer.model
            for name, explainer in self.explainers.items()
            if isinstance(explainer, OpenAIExplainer)
        }
        for name, scorer in self.scorers.items():
            if isinstance(scorer, AskingScorer | IntruderScorer) and scorer.judge is not None:
                found[f"scorers.{name}.judge.model"] = scorer.judge.model
        return found

    def scored_pairs(self) -> list[tuple[str, str]]:
        """Every (explainer, scorer), in display order; scorers that need none come once."""
        pairs = [
            (explainer, name)
            for explainer in self.explainers
            for name, scorer in self.scorers.items()
            if not isinstance(scorer, IntruderScorer)
        ]
        return pairs + [
            (NO_EXPLAINER, name)
            for name, scorer in self.scorers.items()
            if isinstance(scorer, IntruderScorer)
        ]

    def draws_of(self, variant: str) -> range:
        """The draws of a variant: fixed variants have draw 0 only."""
        return range(1 if variant in FIXED_VARIANTS else self.draws)
