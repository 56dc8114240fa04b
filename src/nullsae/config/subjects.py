"""Config key `subjects`: the transformers under study and where their weights come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nullsae.config.model_files import GgufFile, Origin, is_local
from nullsae.config.section import FloatType, Section, Trusted, drop_if_null, unique
from nullsae.config.sites import HOW, PATTERN


class TrainSource(Origin):
    """A small GPT-NeoX trained inside the workflow on the corpus' `sae_train` split."""

    kind: Literal["train"]
    n_layers: Annotated[int, Field(ge=1, le=1000)] = 3
    d_model: Annotated[int, Field(ge=1, le=65_536)] = 128
    n_heads: Annotated[int, Field(ge=1, le=4096)] = 4
    rotary_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each head that is rotated (Pythia: 0.25)."""
    steps: PositiveInt = 1000
    """Optimizer steps, the same number on every machine."""
    batch_contexts: PositiveInt = 16
    muon_lr: PositiveFloat = 8.0e-3
    """Learning rate of Muon, for the matrices of the blocks."""
    adamw_lr: PositiveFloat = 4.0e-3
    """Learning rate of AdamW, for embeddings, norms and biases."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.03
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def at_hand(self) -> str:
        return "trained here"

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} over n_heads {self.n_heads} is not an even whole number"
            )
        return self


class GgufSource(GgufFile):
    """Weights in a GGUF file, converted once to a checkpoint folder (`pip install gguf`)."""

    dtype: FloatType = "float32"
    """Precision of the subject's weights and forward passes."""


# Placeholder in `retrained` for the number of a draw.
NUMBER = "{n}"


class RetrainedModel(Section):
    """The subject, trained from another seed by its makers."""

    path: str | None
    """Hub id or local folder (PolyPythias: `EleutherAI/pythia-14m-seed1`). `{n}` here or in
    `revision` is replaced by the number of the draw, from 1; without it there is one draw. null if
    nobody trained the subject again: it then lacks this variant."""
    revision: str | None = None

    @property
    def n_models(self) -> int | None:
        """How many there are to use as draws; None if numbered."""
        if self.path is None:
            return 0
        return None if NUMBER in self.path or NUMBER in (self.revision or "") else 1

    def numbered(self, draw: NonNegativeInt) -> RetrainedModel:
        """Return the model of one draw."""
        path, revision = (
            text and text.replace(NUMBER, str(draw + 1)) for text in (self.path, self.revision)
        )
        return RetrainedModel(path=path, revision=revision)


class PretrainedSource(Origin):
    kind: Literal["pretrained"]
    path: str
    """Hub id or local folder of any `AutoModelForCausalLM`."""
    revision: str | None = None
    step0_revision: str | None = None
    """Revision of the untrained weights (Pythia: `step0`); the variant `step0` needs this or
    `step0_path`."""
    step0_path: str | None = None
    """Hub id or local folder of the untrained weights, if they are not a revision of `path`."""
    retrained: RetrainedModel | None = None
    """The subject trained from another seed; the variant `retrained` needs it."""
    dtype: FloatType = "float32"
    """Precision of the subject's weights and forward passes."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """How to spread a subject over several GPUs (Accelerate); by default it is on one device."""
    gpus: Annotated[int, Field(ge=2)] | None = None
    """With a `device_map`: the number of GPUs that each job with this subject requests and uses.
    null requests one, and uses all that no other job holds."""
    trust_remote_code: Annotated[
        bool, Trusted("jobs run Python code that comes with the model as you")
    ] = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""

    @model_validator(mode="after")
    def folders_have_no_revisions(self) -> Self:
        for key, path in (
            ("revision", self.path),
            ("step0_revision", self.step0_path or self.path),
        ):
            if getattr(self, key) is not None and is_local(path):
                hint = "" if key == "revision" else "; give the untrained weights as step0_path"
                raise ValueError(f"{key}: {path!r} is a local folder, which has no revisions{hint}")
        return self

    @model_validator(mode="after")
    def retrained_is_another_model(self) -> Self:
        given = self.retrained
        if given is None or given.path is None:
            return self
        if given.revision is not None and is_local(given.path):
            raise ValueError(
                f"retrained.revision: {given.path!r} is a local folder, which has no revisions"
            )
        if (given.path, given.revision or "main") == (self.path, self.revision or "main"):
            raise ValueError(
                f"retrained: {given.path!r} is the subject itself; give one from another seed"
            )
        return self

    @model_validator(mode="after")
    def several_gpus_are_for_a_device_map(self) -> Self:
        if self.gpus is not None and self.device_map is None:
            raise ValueError(f"gpus: {self.gpus} GPUs need a device_map; set device_map: auto")
        return self

    _dumped = drop_if_null("retrained", "gpus")

    def weights_of(self, *, step0: bool) -> tuple[str, str | None, str, str]:
        """Return path and revision of the trained or untrained weights, and their keys."""
        if not step0:
            return self.path, self.revision, "path", "revision"
        key = "path" if self.step0_path is None else "step0_path"
        return self.step0_path or self.path, self.step0_revision, key, "step0_revision"


class Subject(Section):
    corpus: str
    """Name of the corpus (key of `corpora`) that the subject reads."""
    source: TrainSource | PretrainedSource | GgufSource = Field(discriminator="kind")
    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    """Where activations are read: `resid_post.L` (output of block L, counted from 0),
    `resid_pre.L`, `hook_z.L`, `attn_out.L`, `resid_mid.L`, `mlp_in.L`, `mlp_post.L`, `mlp_out.L`,
    `embed`. Instead of L: `*` for all blocks, `-1` for the last, `0..8` for a range with both ends,
    `0..-1..4` for every fourth."""

    @field_validator("sites")
    @classmethod
    def sites_are_known(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        for site in sites:
            if not PATTERN.match(site):
                raise ValueError(f"{site!r} is not a site; {HOW}")
        return unique(sites)
