"""The recipe of an SAE: what it is, and how it is trained.

Keys of all SAEs are here, those of one architecture in its file of `sae/architectures/`, those of
one dictionary in its file of `sae/dictionaries/`. A recipe is a section with all three, and refuses
the keys of others.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from nullsae.config.codes import Coding
from nullsae.config.dictionaries import DICTIONARIES, Dictionary
from nullsae.config.pretrained import Difference, Pretrained
from nullsae.config.section import Section, Seeds, Share, drop_if_null, unique
from nullsae.config.transcoding import Transcoding
from nullsae.core.registry import Registry

Beta = Annotated[float, Field(ge=0, lt=1)]
# Separates a recipe's name from a share of its training; names in the config cannot have it.
AT = "@"
# Defaults of a named `recipe`.
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
    }
}


class Expect(Section):
    """Published figures of an SAE made elsewhere."""

    l0: PositiveFloat | None = None
    """Mean number of latents that fire on a token."""
    explained_variance: Annotated[float, Field(le=1)] | None = None


def checkpoint_name(sae: str, share: float) -> str:
    """Return the name of an SAE after a share of its training, such as `topk@0.1`."""
    return f"{sae}{AT}{share:g}"


def recipe_name(sae: str) -> str:
    """Return the recipe of an SAE, `topk` for both `topk` and `topk@0.1`."""
    return sae.partition(AT)[0]


class Sae(Coding, Transcoding):
    """How one kind of SAE is made.

    Parsing an `Sae` gives a section of the architecture and the dictionary that it names.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    step_cost: ClassVar[float] = 1.0
    """Measured time of a training step relative to `topk` of the same width."""
    keeps_k: ClassVar[bool] = False
    """Whether k latents are active for any weights."""

    recipe: Literal["paper"] | None = None
    """`paper`: the settings of Heap et al. for all keys that are not given here."""
    architecture: str = "topk"
    """Which latents are active, and the sparsity penalty."""
    dictionary: str = "learned"
    """Where the directions come from: training, or a null."""
    n_latents: PositiveInt | None = None
    """Width of the dictionary; give this or `expansion_factor`, but neither for a computed
    dictionary, which has its own."""
    expansion_factor: PositiveInt | None = None
    """Width of the dictionary as a multiple of the site's width."""
    pretrained: Pretrained | None = None
    """An SAE made elsewhere, for the trained variant: a folder or hub id in the layout of nullsae,
    SAELens, sparsify or dictionary_learning, and after `::` a folder within it, or
    `{saelens: {release, sae_id}}`; `{site}` and `{layer}` are filled in. Or a Python object with
    `encode` and `decode`, `{object, d_model, files}`, which jobs import. The nulls get SAEs of the
    same width, trained here by this recipe, with its k or the recipe's. If neither has a k, they
    aim at the pretrained SAE's L0 on `trained`."""
    accept_differences: Annotated[tuple[Difference, ...], AfterValidator(unique)] = ()
    """Accepted differences between what a pretrained SAE was made on and what it is fed; all others
    are refused."""
    expect: Expect | None = None
    """Published figures of the `pretrained` SAE. `evaluate_sae` stops if it does not reach them,
    and says how to feed it instead; `nullsae check` does so beforehand."""
    match_l0_of: str | None = None
    """Name of a pretrained SAE of this config. SAEs of this recipe also aim at its L0 on `trained`,
    by their k or by a penalty adjusted during training."""
    seeds: Seeds = (0,)
    lr: PositiveFloat | None = None
    """Peak learning rate of Adam; by default base_lr / sqrt(n_latents / 2^14)."""
    base_lr: PositiveFloat = 2e-3
    """Peak learning rate at 2^14 latents."""
    adam_betas: tuple[Beta, Beta] = (0.5, 0.95)
    """Adam's beta1 and beta2."""
    batch_tokens: PositiveInt = 4096
    """Tokens per optimizer step."""
    epochs: PositiveInt = 1
    """Passes over the cached tokens."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the optimizer steps over which the learning rate rises linearly from 0."""
    warmup_steps: NonNegativeInt | None = None
    """The number of those steps, instead of `warmup_share`."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the optimizer steps, at the end, over which the learning rate falls linearly to 0;
    1 means all steps after the warm-up."""
    dead_after_tokens: PositiveInt | None = None
    """A latent is dead after this many tokens without firing; by default 1% of the training tokens,
    at least 100 n_latents / k and at most 10 million."""
    grad_clip_norm: PositiveFloat = 1.0
    checkpoint_every_steps: PositiveInt = 1000
    """Optimizer steps between checkpoints, from which a killed training resumes."""
    evaluate_every_steps: PositiveInt = 100
    """Optimizer steps between held-out evaluations."""
    heldout_tokens: PositiveInt = 16_384
    """Tokens of `eval` in each evaluation during training."""
    stored_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the encoder's and decoder's weights on disk; metrics use these."""
    checkpoints: tuple[Share, ...] = ()
    """Shares of the training at which a copy of the SAE, `name@share`, also goes through all later
    stages."""

    @classmethod
    def of(cls, **keys: Any) -> Sae:
        """Return a recipe with these keys."""
        return Sae.model_validate(keys)

    @field_validator("checkpoints")
    @classmethod
    def checkpoints_have_names_of_their_own(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        unique(tuple(f"{share:g}" for share in shares))
        return tuple(sorted(shares))

    @model_validator(mode="after")
    def architecture_and_dictionary_fit(self) -> Self:
        if not self.origin.trained:
            if self.architecture != Sae.model_fields["architecture"].default:
                raise ValueError(
                    f"dictionary {self.dictionary!r} is not trained: leave out architecture "
                    f"{self.architecture!r}"
                )
            if self.checkpoints:
                raise ValueError(f"checkpoints: dictionary {self.dictionary!r} is not trained")
        if "encoder.weight" in self.origin.frozen and not self.keeps_k:
            fitting = ", ".join(name for name, other in ARCHITECTURES.items() if other.keeps_k)
            raise ValueError(
                f"dictionary {self.dictionary!r} needs an architecture whose k is kept without "
                f"learning ({fitting}), not {self.architecture!r}"
            )
        return self

    @model_validator(mode="after")
    def l0_is_clear(self) -> Self:
        if self.match_l0_of is not None:
            if self.pretrained is not None:
                raise ValueError("match_l0_of: a pretrained SAE has its own L0")
            if self.given_k is not None:
                raise ValueError("give either k or match_l0_of")
            if self.origin.derived:
                raise ValueError(
                    f"match_l0_of: {self.dictionary!r} has the L0 of the SAE that it is made from"
                )
            if self.origin.reads_tokens:
                raise ValueError(f"match_l0_of: the L0 of {self.dictionary!r} is 1")
        return self

    @model_validator(mode="after")
    def something_is_expected_of_what_is_given(self) -> Self:
        if self.expect is not None and self.pretrained is None:
            raise ValueError("expect: only for an SAE with pretrained")
        return self

    _dumped = drop_if_null("expect", "variants", "sites")

    @model_validator(mode="after")
    def width_is_clear(self) -> Self:
        wide = self.n_latents is not None or self.expansion_factor is not None
        if self.pretrained is None and self.accept_differences:
            raise ValueError("accept_differences: only for an SAE with pretrained")
        if self.output_site is not None and self.pretrained is None:
            raise ValueError("output_site: transcoders are not trained here; give pretrained")
        if self.pretrained is not None:
            if not self.origin.takes_pretrained:
                raise ValueError(f"pretrained does not go with dictionary {self.dictionary!r}")
            if self.origin.source is not None:
                raise ValueError("give either from or pretrained")
            if self.checkpoints:
                raise ValueError(
                    "checkpoints: the training of a pretrained SAE is unknown, so nulls cannot be "
                    "compared with it; leave checkpoints out"
                )
            if wide:
                raise ValueError(
                    "a pretrained SAE has its own width: drop n_latents and expansion_factor"
                )
            return self
        if not self.origin.trained:
            if wide:
                said = f"dictionary {self.dictionary!r} has its own width"
                raise ValueError(f"{said}: drop n_latents and expansion_factor")
            self.origin.check(self.given_k)
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
    def origin(self) -> Dictionary:
        """Its dictionary, with only the keys of that."""
        kind = DICTIONARIES[self.dictionary]
        return kind(**{name: getattr(self, name) for name in kind.model_fields})

    @property
    def is_real(self) -> bool:
        """Whether null dictionaries are compared with it and may be derived from it."""
        return not self.origin.is_null and self.origin.source is None

    def made_elsewhere(self, variant: str) -> bool:
        """Return whether a variant's SAE is the pretrained one rather than one trained here."""
        return self.pretrained is not None and (variant == "trained" or not self.origin.trained)

    @property
    def given_k(self) -> int | None:
        """The recipe's own k, if its architecture has a k and it is given."""
        return None

    def aimed_at(self, name: str, variant: str) -> str | None:
        """Return the config's pretrained SAE whose L0 a variant's SAE aims at, or None.

        `name` is this recipe's name.
        """
        if self.match_l0_of is not None:
            return self.match_l0_of
        is_null = self.pretrained is not None and not self.made_elsewhere(variant)
        return name if is_null and self.given_k is None else None

    def with_l0(self, l0: float) -> Self:
        """Return this recipe, aimed at so many active latents per token."""
        raise NotImplementedError

    @property
    def limited(self) -> bool:
        """Whether k sets the L0 (exactly, on average, or as a target), rather than a penalty."""
        return "k" in type(self).model_fields

    @property
    def kept(self) -> int:
        """Latents kept per token; with a penalty, the number that the encoder's initial scale is
        fitted for.
        """
        return min(self.origin.default_k, self.n_latents or self.origin.default_k)

    def width(self, d_model: int, vocab_size: int | None = None) -> int | None:
        """Return the number of latents at a site; None if it depends on a file or a corpus."""
        if self.pretrained is not None:
            return None
        if not self.origin.trained:
            return self.origin.width(d_model, vocab_size)
        return self.n_latents or (self.expansion_factor or 1) * d_model

    @classmethod
    def training(cls) -> Any:
        """Return the subclass of `nullsae.sae.architectures.base.TrainedSae` that trains it."""
        raise NotImplementedError

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        return every_key() if cls is Sae else super().known_keys()

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        if cls is Sae:
            return {key: text for s in every_section() for key, text in s.descriptions().items()}
        found = super().descriptions()
        for kind, registry in KINDS.items():
            each = "; ".join(f"`{name}` {thing.summary}" for name, thing in registry.items())
            found[kind] += f" {each}."
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if Coding not in cls.__bases__:
            return handler(source)
        return core_schema.with_info_plain_validator_function(chosen)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        if Coding not in cls.__bases__:
            return super().__get_pydantic_json_schema__(schema, handler)
        fields: Any = {name: (field.annotation, field) for name, field in every_key().items()}
        summary = "How one kind of SAE is made."
        whole = create_model("Sae", __base__=Section, __doc__=summary, **fields)
        whole.described_by = (Sae,)
        return handler(whole.__pydantic_core_schema__)


ARCHITECTURES = Registry("architectures", Sae, "nullsae.sae.architectures")
KINDS: dict[str, Registry[Any]] = {"architecture": ARCHITECTURES, "dictionary": DICTIONARIES}


def chosen(given: Any, info: ValidationInfo) -> Sae:
    """Return the section of the architecture and the dictionary that a recipe names.

    Raises:
        ValueError: a key belongs to others only.
    """
    if isinstance(given, Sae):
        return given
    names = {kind: Sae.model_fields[kind].default for kind in KINDS}
    if isinstance(given, dict):
        filled = RECIPES.get(str(given.get("recipe")), {})
        if given.get("n_latents") is not None:
            filled = {k: v for k, v in filled.items() if k != "expansion_factor"}
        given = given | {k: v for k, v in filled.items() if given.get(k) is None}
        names |= {kind: given[kind] for kind in names if given.get(kind) in KINDS[kind]}
    section = _section(*(KINDS[kind][name] for kind, name in names.items()))
    if isinstance(given, dict):
        for key in [key for key in given if key not in _keys(section)]:
            for kind, name in names.items():
                owners = [o for o, other in KINDS[kind].items() if key in _keys(other)]
                if owners and given.get(kind, name) != name:
                    given = {k: v for k, v in given.items() if k != key}
                elif owners:
                    end = f", not {name!r}" if kind == "architecture" else " only"
                    raise ValueError(f"{key} is for {kind} {' or '.join(owners)}{end}")
    if info.mode == "json":
        # JSON text, because there lists may fill tuples.
        return section.model_validate_json(json.dumps(given))
    return section.model_validate(given)


def _keys(section: type[Section]) -> set[str]:
    """Return the config keys of a section's fields."""
    return {field.alias or name for name, field in section.model_fields.items()}


def every_section() -> list[type[Sae]]:
    """Return sections that together cover each architecture and each dictionary."""
    architectures, dictionaries = [*ARCHITECTURES.values()], [*DICTIONARIES.values()]
    pairs = [(architecture, dictionaries[0]) for architecture in architectures]
    return [_section(*pair) for pair in pairs + [(architectures[0], d) for d in dictionaries]]


def every_key() -> dict[str, FieldInfo]:
    """Return all keys of recipes: the common ones and those of each architecture and dictionary."""
    return {key: field for s in every_section() for key, field in s.model_fields.items()}


def _section(architecture: type[Sae], dictionary: type[Dictionary]) -> type[Sae]:
    return _section_among(architecture, dictionary, tuple(map(tuple, KINDS.values())))


@cache
def _section_among(
    architecture: type[Sae], dictionary: type[Dictionary], among: tuple[tuple[str, ...], ...]
) -> type[Sae]:
    """Return the section of an architecture with the keys of a dictionary."""
    fields: Any = {n: (field.annotation, field) for n, field in dictionary.model_fields.items()}
    for kind, names in zip(KINDS, among, strict=True):
        fields[kind] = (Literal[names], Sae.model_fields[kind].default)
    name, module = architecture.__name__, architecture.__module__
    made = create_model(name, __base__=architecture, __module__=module, **fields)
    made.described_by = (dictionary,)
    return made
