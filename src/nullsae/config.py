"""The config: frozen models, unknown keys forbidden, units in names.

The line below each field says what it means; it becomes the field's description in
`workflow/schemas/config.schema.json`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    NonNegativeFloat,
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
)
from nullsae.outputs import Report, Share, Statistics
from nullsae.sites import HOW, PATTERN

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
Dictionary = Literal[
    "learned",
    "frozen_decoder",
    "soft_frozen_decoder",
    "frozen_encoder",
    "token_lookup",
    "pca",
    "identity",
]
# Dictionaries that are computed, not trained by gradient steps.
FITTED_DICTIONARIES = ("token_lookup", "pca", "identity")
# Of these, those that hold each direction with both signs.
SIGNED_DICTIONARIES = ("pca", "identity")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
DEFAULT_K = 32
T = TypeVar("T")


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
        return _unique(sites)


class Randomization(Section):
    norm_parameters: Literal["rerandomize", "keep"] = "rerandomize"
    """What `rerandomized*`, `permuted_weights`, `spectrum_matched` and `cascade` do with the gains
    and biases of the normalization layers."""
    embedding_noise_std: PositiveFloat = 1.0
    """Standard deviation of the noise that replaces embeddings in `noise_embeddings`."""
    first_random_block: NonNegativeInt | None = None
    """`cascade` keeps the blocks before this one; by default the first half of them."""


class Activations(Section):
    sae_train_tokens: PositiveInt
    """Tokens of `sae_train` whose activations are cached; `eval` is cached whole."""
    dtype: FloatType = "bfloat16"
    """Precision on disk."""
    shard_tokens: PositiveInt = 65_536
    """Tokens in a shard. `sae_train` tokens are permuted within shards."""
    batch_contexts: PositiveInt = 32
    """Contexts in one forward pass."""


class Sae(Section):
    architecture: Literal["topk"] = "topk"
    dictionary: Dictionary = "learned"
    """`learned`, or a null: decoder or encoder `frozen` at its random start, one direction per
    token (`token_lookup`), principal components (`pca`), the neuron basis (`identity`)."""
    k: PositiveInt | None = None
    """Latents kept per token; by default 32, and 1 for `token_lookup`."""
    n_latents: PositiveInt | None = None
    """Width of the dictionary; give this or `expansion_factor`. `token_lookup` has as many latents
    as there are tokens, `pca` and `identity` two (plus and minus) per direction."""
    expansion_factor: PositiveInt | None = None
    """Width of the dictionary as a multiple of the site's width."""
    n_components: PositiveInt | None = None
    """Directions of `pca`, strongest first; by default all."""
    min_decoder_cosine: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """`soft_frozen_decoder` keeps each decoder row at least this close to its random start."""
    pretrained: str | None = None
    """An SAE made elsewhere (nullsae, SAELens or sparsify format) that stands for the trained
    variant: a folder or hub id, and after `::` a folder within it; `{site}` and `{layer}` are
    filled in. The nulls get SAEs of the same width and k, trained here by this recipe."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    lr: PositiveFloat | None = None
    """Peak learning rate of Adam; by default 2e-4 / sqrt(n_latents / 2^14)."""
    batch_tokens: PositiveInt = 4096
    """Tokens in an optimizer step."""
    epochs: PositiveInt = 1
    """Passes over the cached tokens."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the optimizer steps in which the rate rises linearly from 0."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the optimizer steps in which it falls linearly to 0, at the end."""
    auxk_coefficient: NonNegativeFloat = 0.03125
    """Weight of the AuxK loss, which lets dead latents model the residual."""
    auxk_k: PositiveInt | None = None
    """Dead latents used per token by AuxK; by default half the site's width."""
    dead_after_tokens: PositiveInt = 10_000_000
    """A latent is dead after so many tokens without firing."""
    grad_clip_norm: PositiveFloat = 1.0
    checkpoint_every_steps: PositiveInt = 1000
    """A killed training resumes from the last checkpoint."""
    evaluate_every_steps: PositiveInt = 100
    """Optimizer steps between held-out evaluations."""
    heldout_tokens: PositiveInt = 16_384
    """Tokens of `eval` in each evaluation along training."""

    @field_validator("seeds")
    @classmethod
    def seeds_are_unique(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _unique(seeds)

    @model_validator(mode="after")
    def width_is_clear(self) -> Self:
        if self.pretrained is not None:
            if self.dictionary != "learned":
                raise ValueError(f"pretrained does not go with dictionary {self.dictionary!r}")
            if self.n_latents is not None or self.expansion_factor is not None:
                raise ValueError(
                    "a pretrained SAE has its own width: drop n_latents and expansion_factor"
                )
            return self
        if self.n_components is not None and self.dictionary != "pca":
            raise ValueError("n_components is for dictionary pca only")
        if self.dictionary in FITTED_DICTIONARIES:
            if self.n_latents is not None or self.expansion_factor is not None:
                raise ValueError(
                    f"dictionary {self.dictionary!r} has its own width: "
                    f"drop n_latents and expansion_factor"
                )
            if self.dictionary == "token_lookup" and self.k not in (None, 1):
                raise ValueError(
                    f"k {self.k} does not fit dictionary 'token_lookup', which has one latent per "
                    f"token: give k 1 or leave it out"
                )
            return self
        if (self.n_latents is None) == (self.expansion_factor is None):
            raise ValueError("give either n_latents or expansion_factor")
        if self.n_latents is not None and self.kept > self.n_latents:
            raise ValueError(
                f"k {self.kept} is larger than n_latents {self.n_latents}; "
                f"k is the number of latents kept per token, at most n_latents"
            )
        return self

    @property
    def kept(self) -> int:
        """Latents kept per token."""
        return self.k or (1 if self.dictionary == "token_lookup" else DEFAULT_K)

    def n_directions(self, d_model: int) -> int:
        """Directions of `pca` or `identity`: each is two latents, of which one is active."""
        return min(d_model, self.n_components or d_model)

    def width(self, d_model: int) -> int | None:
        """Number of latents for a site of `d_model` dimensions; None if a file or a corpus says."""
        if self.pretrained is not None or self.dictionary == "token_lookup":
            return None
        if self.dictionary in SIGNED_DICTIONARIES:
            return 2 * self.n_directions(d_model)
        return self.n_latents or (self.expansion_factor or 1) * d_model


class Evaluation(Section):
    fidelity_tokens: PositiveInt = 16_384
    """Tokens of `eval` for cross-entropy and KL with the SAE spliced in (four forward passes)."""
    cross_tokens: PositiveInt | None = None
    """Tokens of `eval` on which each SAE is also evaluated on the other variants' activations
    (table `cross_evaluation`); null for none."""


class Latents(Section):
    n_sampled: PositiveInt = 50
    """Latents drawn at random, per SAE, among those that pass the filter."""
    min_firings: PositiveInt = 200
    """Filter: firings in the whole of `eval`."""
    min_pool_windows: PositiveInt = 10
    """Filter: active and silent windows in each pool (explaining, scoring)."""
    window_tokens: Annotated[int, Field(ge=2)] = 32
    """Length of a window. Windows that touch two documents are left out and counted."""
    explain_active_windows: PositiveInt = 40
    """Active windows shown to an explainer, drawn at random."""
    explain_silent_windows: PositiveInt = 40
    """Silent windows shown to an explainer."""
    score_active_windows: PositiveInt = 100
    """Active windows that a scorer judges, in equal numbers from `n_quantiles`."""
    score_silent_windows: PositiveInt = 100
    """Silent windows that a scorer judges."""
    n_quantiles: PositiveInt = 10
    """Equal-count slices of the active windows, ranked by their largest activation."""


class LexicalExplainer(Section):
    kind: Literal["lexical"]
    context: Literal["token", "bigram"] = "token"
    """What the judge looks at: each token, or each token with its predecessor."""
    top_tokens: PositiveInt = 10
    """Tokens named in the text of an explanation; the judge uses the statistics of all."""


class SwappedExplainer(Section):
    kind: Literal["swapped"]
    of: str
    """The explainer whose explanations are exchanged among the latents of an SAE."""


class DetectionScorer(Section):
    kind: Literal["detection"]


class FuzzingScorer(Section):
    kind: Literal["fuzzing"]
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked when it is active above this share of its window's maximum."""


Explainer = Annotated[LexicalExplainer | SwappedExplainer, Field(discriminator="kind")]
Scorer = Annotated[DetectionScorer | FuzzingScorer, Field(discriminator="kind")]


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
    statistics: Statistics = Statistics()
    report: Report = Report()

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
        return _unique(variants)

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
        for name, explainer in self.explainers.items():
            if isinstance(explainer, SwappedExplainer):
                base = self.explainers.get(explainer.of)
                if base is None or isinstance(base, SwappedExplainer):
                    raise ValueError(
                        f"explainers.{name}.of: {explainer.of!r} is not an explainer that writes "
                        f"explanations"
                    )
        return self

    def draws_of(self, variant: str) -> range:
        """The draws of a variant: fixed variants have draw 0 only."""
        return range(1 if variant in FIXED_VARIANTS else self.draws)


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        raise ValueError(f"{sorted(map(str, repeated))[0]!r} is named twice")
    return values
