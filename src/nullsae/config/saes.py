"""The recipe of an SAE: what it is, and how it is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nullsae.config.section import Section, unique

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
DEFAULT_K = 32
Architecture = Literal["topk", "batch_topk", "matryoshka", "jumprelu", "gated", "standard"]
# Architectures whose activity follows from a penalty, not from k.
PENALIZED = ("gated", "standard")
Beta = Annotated[float, Field(ge=0, lt=1)]
# Keys of a recipe that only some architectures read.
ARCHITECTURE_KEYS: dict[str, tuple[str, ...]] = {
    "multi_topk": ("topk",),
    "prefix_shares": ("matryoshka",),
    "l1_coefficient": PENALIZED,
    "l0_coefficient": ("jumprelu",),
    "bandwidth": ("jumprelu",),
    "initial_threshold": ("jumprelu",),
    "auxk_coefficient": ("topk", "batch_topk", "matryoshka"),
    "auxk_k": ("topk", "batch_topk", "matryoshka"),
    "k": ("topk", "batch_topk", "matryoshka", "jumprelu"),
}
# Between the name of a recipe and a share of its training; names of the config have none.
AT = "@"
# Settings of a named `recipe`, for the keys that are not given.
RECIPES: dict[str, dict[str, Any]] = {
    # Heap et al. (arXiv 2501.17727), by EleutherAI's sparsify: no revival of dead latents.
    "paper": {
        "architecture": "topk",
        "k": 32,
        "expansion_factor": 64,
        "base_lr": 2e-4,
        "adam_betas": (0.9, 0.999),
        "batch_tokens": 65_536,
        "warmup_steps": 1000,
        "decay_share": 1.0,
        "auxk_coefficient": 0.0,
        "dead_after_tokens": 10_000_000,
    },
}


def checkpoint_name(sae: str, share: float) -> str:
    """The name of an SAE as it was after a share of its training, such as `topk@0.1`."""
    return f"{sae}{AT}{share:g}"


def recipe_name(sae: str) -> str:
    """The recipe that an SAE of this name is made by, `topk` for `topk` and for `topk@0.1`."""
    return sae.partition(AT)[0]


def fill_in_recipe(given: Any) -> Any:
    """What a recipe's `recipe` stands for, filled in where a key is not given."""
    if not isinstance(given, dict) or given.get("recipe") not in RECIPES:
        return given
    filled = {k: v for k, v in RECIPES[given["recipe"]].items() if given.get(k) is None}
    if given.get("n_latents") is not None:
        filled.pop("expansion_factor", None)
    return {**given, **filled}


class Sae(Section):
    """How one kind of SAE is made."""

    recipe: Literal["paper"] | None = None
    """`paper`: the settings of Heap et al. for all keys that are not given here."""
    architecture: Architecture = "topk"
    """`topk` keeps the k largest pre-activations of each token, `batch_topk` and `matryoshka`
    (nested prefixes of the dictionary) k per token on average; `jumprelu` learns a threshold per
    latent, with k as the target; `gated` and `standard` pay for activity by `l1_coefficient`."""
    dictionary: Dictionary = "learned"
    """`learned`, or a null: decoder or encoder `frozen` at its random start, one direction per
    token (`token_lookup`), principal components (`pca`), the neuron basis (`identity`)."""
    k: PositiveInt | None = None
    """Latents active per token: exactly (`topk`), on average (`batch_topk`, `matryoshka`) or as
    the target of the penalty (`jumprelu`); by default 32, and 1 for `token_lookup`."""
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
    """Peak learning rate of Adam; by default base_lr / sqrt(n_latents / 2^14)."""
    base_lr: PositiveFloat = 2e-3
    """Peak learning rate at 2^14 latents."""
    adam_betas: tuple[Beta, Beta] = (0.5, 0.95)
    """Decay of Adam's averages of the gradient and of its square, per step."""
    batch_tokens: PositiveInt = 4096
    """Tokens in an optimizer step."""
    epochs: PositiveInt = 1
    """Passes over the cached tokens."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the optimizer steps in which the rate rises linearly from 0."""
    warmup_steps: NonNegativeInt | None = None
    """The number of those steps, in place of `warmup_share`."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the optimizer steps in which it falls linearly to 0, at the end; 1 stands for all
    that follow the warm-up."""
    multi_topk: bool = False
    """Add the loss of 4k latents per token, with weight 1/8, so that more latents learn."""
    prefix_shares: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        0.0625,
        0.125,
        0.25,
        0.5,
        1.0,
    )
    """`matryoshka`: shares of the dictionary that reconstruct on their own, rising, the last 1;
    rounded up to whole latents."""
    l1_coefficient: PositiveFloat = 0.2
    """`gated`, `standard`: weight of the sum of the codes beside the squared error, for inputs
    scaled to a mean norm of 1."""
    l0_coefficient: PositiveFloat = 3.0
    """`jumprelu`: weight of (active latents per token / k - 1)^2 beside the share of variance
    that is not explained."""
    bandwidth: PositiveFloat = 0.01
    """`jumprelu`: width of the kernel that gives thresholds a gradient, for inputs scaled to a mean
    norm of 1."""
    initial_threshold: PositiveFloat | None = None
    """`jumprelu`: every latent's threshold at the start, for inputs scaled to a mean norm of 1; by
    default the one that gives k active latents per token in the first batch."""
    auxk_coefficient: NonNegativeFloat = 0.25
    """Weight of the AuxK loss, which lets dead latents model the residual."""
    auxk_k: PositiveInt | None = None
    """Dead latents used per token by AuxK; by default half the site's width."""
    dead_after_tokens: PositiveInt | None = None
    """A latent is dead after so many tokens without firing; by default 1% of those that the SAE is
    trained on, at least 100 n_latents / k and at most 10 million."""
    grad_clip_norm: PositiveFloat = 1.0
    checkpoint_every_steps: PositiveInt = 1000
    """A killed training resumes from the last checkpoint."""
    evaluate_every_steps: PositiveInt = 100
    """Optimizer steps between held-out evaluations."""
    heldout_tokens: PositiveInt = 16_384
    """Tokens of `eval` in each evaluation along training."""
    checkpoints: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the training after which the SAE as it then is goes through all later stages too,
    as the SAE `name@share`."""

    @field_validator("seeds")
    @classmethod
    def seeds_are_unique(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return unique(seeds)

    @field_validator("checkpoints")
    @classmethod
    def checkpoints_have_names_of_their_own(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        unique(tuple(f"{share:g}" for share in shares))
        return tuple(sorted(shares))

    @field_validator("prefix_shares")
    @classmethod
    def prefixes_are_nested(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)) or shares[-1] != 1.0:
            raise ValueError(f"{list(shares)} must rise, and end at 1")
        return shares

    @model_validator(mode="after")
    def keys_fit_the_architecture(self) -> Self:
        for key, architectures in ARCHITECTURE_KEYS.items():
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and self.architecture not in architectures:
                raise ValueError(
                    f"{key} is for architecture {' or '.join(architectures)}, "
                    f"not {self.architecture!r}"
                )
        if self.dictionary in FITTED_DICTIONARIES and self.architecture != "topk":
            raise ValueError(
                f"dictionary {self.dictionary!r} is not trained: leave out architecture "
                f"{self.architecture!r}"
            )
        if self.dictionary == "frozen_encoder" and self.architecture in (*PENALIZED, "jumprelu"):
            raise ValueError(
                f"dictionary 'frozen_encoder' needs an architecture whose k is kept without "
                f"learning (topk, batch_topk, matryoshka), not {self.architecture!r}"
            )
        if self.checkpoints and self.dictionary in FITTED_DICTIONARIES:
            raise ValueError(f"checkpoints: dictionary {self.dictionary!r} is not trained")
        return self

    @model_validator(mode="after")
    def width_is_clear(self) -> Self:
        if self.pretrained is not None:
            if self.dictionary != "learned":
                raise ValueError(f"pretrained does not go with dictionary {self.dictionary!r}")
            if self.checkpoints:
                raise ValueError(
                    "checkpoints: nothing is known of how a pretrained SAE was trained, so that "
                    "the nulls would have nothing to be compared with"
                )
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
        """Latents kept per token; where a penalty decides, those that the encoder's scale at the
        start is fitted for.
        """
        if self.architecture in PENALIZED:
            return min(DEFAULT_K, self.n_latents or DEFAULT_K)
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
