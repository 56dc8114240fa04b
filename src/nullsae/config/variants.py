"""Variants: what stands beside the trained subject, each a class in a file of its own.

Also Gaussian data: whose mean and covariance they have, and the names of what is fitted to whom.
The variant `gaussian` has the moments of the trained variant. A floor, `gaussian@V`, has those of
another variant V: it is no variant of a study, but what SAEs on V's activations are measured
against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from nullsae.config.randomization import Randomization, Settings
from nullsae.config.saes import AT
from nullsae.config.section import OneOf
from nullsae.core.registry import Registry

GAUSSIAN = "gaussian"
FLOOR_PREFIX = GAUSSIAN + AT


@dataclass(frozen=True)
class Look:
    """How one variant is drawn."""

    light: str
    """Colour on a light ground, as `#rrggbb`."""
    dark: str
    """Colour on a dark ground."""
    shape: str
    """A Vega symbol, or an SVG path within a box from -1 to 1."""
    dash: tuple[int, ...]


class Variant:
    """Base of all variants: what is done to a subject, and all that is said of it.

    A variant is a class that is never made an object of. It changes the weights (`changes`), or
    what runs on them (`install`), or both.
    """

    name: ClassVar[str]
    """As in the config key `variants`, in paths and in tables."""
    position: ClassVar[int]
    """Place among all variants, in lists and messages."""
    group: ClassVar[str] = "other"
    """What of the subject is exchanged, for the report's list of controls."""
    text: ClassVar[str] = ""
    """What it keeps of the trained subject and what it destroys, in one sentence."""
    look: ClassVar[Look | None] = None
    """Colours, shape and dash in figures; by default they are made from the name."""
    origin: ClassVar[Literal["source", "trained"]] = "trained"
    """Whether its weights are read from the subject's source or made from the trained ones."""
    sampled_from: ClassVar[str] = ""
    """Of a variant without weights: the one whose activations give it its mean and covariance."""
    by_training: ClassVar[bool] = False
    """Whether training a subject here makes it, too."""
    role: ClassVar[Literal["null", "positive control"]] = "null"
    """What it is beside `trained`. A good metric tells a null from that. A positive control is
    trained like the subject, from another seed: a good metric does not tell the two apart."""
    fixed: ClassVar[bool] = False
    """Whether nothing in it is drawn, so that it has draw 0 only."""
    reads: ClassVar[tuple[str, ...]] = ()
    """The keys of `randomization` that it depends on."""
    purpose: ClassVar[str] = ""
    """What keys its random numbers; by default its name."""
    changes_weights: ClassVar[bool] = True
    """Whether `changes` names any."""

    @classmethod
    def has_own_weights(cls) -> bool:
        """Whether its weights are its own; else it runs on those of `trained`, if on any."""
        return not cls.sampled_from and (cls.changes_weights or cls.origin == "source")

    @classmethod
    def acts_on_passes(cls) -> bool:
        """Whether it is more than weights: it has an `install` of its own."""
        return cls.install.__func__ is not Variant.install.__func__  # type: ignore[attr-defined]

    @classmethod
    def settings(cls, randomization: Randomization) -> dict[str, Any]:
        """What it depends on of `randomization`, by key."""
        return {key: getattr(randomization, key) for key in cls.reads}

    @classmethod
    def describe(cls, randomization: Randomization) -> str:
        """`text` under these settings."""
        keeps = "norm_parameters" in cls.reads and randomization.norm_parameters == "keep"
        return cls.text + (" Normalization layers are kept." if keeps else "")

    @classmethod
    def draws(cls, source: Any, n: int) -> range:
        """Its draws in a study of `n` draws, of a subject from this source."""
        return range(1 if cls.fixed else n)

    @classmethod
    def source_of(cls, source: Any, draw: int) -> Any:
        """What one draw depends on of a subject's source, in the source's form.

        What only other variants read is left out, so that an edit of it runs nothing again here.
        """
        if getattr(source, "retrained", None) is None:
            return source
        return source.model_copy(update={"retrained": None})

    @classmethod
    def weights_of(cls, source: Any) -> tuple[str, str | None, str, str]:
        """Path and revision of its weights in a pretrained source, and the keys that name them."""
        return source.weights_of(step0=False)  # type: ignore[no-any-return]

    @classmethod
    def lacks(cls, source: Any) -> str | None:
        """What it needs and a subject's source does not give; None if all is there.

        Returns:
            The key below `source`, a colon, and what is wrong with it.
        """
        made = source.kind == "pretrained" or (cls.by_training and source.kind == "train")
        if cls.origin != "source" or made:
            return None
        return f"kind: {source.kind!r} has no weights of {cls.name}"

    @classmethod
    def resolve(cls, model: Any, settings: Settings, subject: str) -> Settings:
        """The settings for one model, with its own defaults filled in.

        Raises:
            UserError: they do not fit the model; names the config key and the subject.
        """
        return settings

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Any]:
        """The `nullsae.subjects.changes.Change` of each parameter that is changed, by its name.

        Tied tensors appear once in `named_parameters`, so they are drawn once and stay tied.
        """
        return {}

    @classmethod
    def install(cls, subject: Any) -> None:
        """Change what runs on the weights of a loaded `nullsae.subjects.loading.Subject`."""

    @classmethod
    def gates(cls, subject: Any, probe: Any) -> list[Any]:
        """Gates on what `install` does.

        Args:
            subject: the variant as it was saved and loaded again.
            probe: token ids [contexts, tokens], the first ones of `eval`.
        """
        return []


VARIANTS = Registry("variants", Variant, "nullsae.subjects.variants")


def floor_name(variant: str) -> str:
    """The name that stands for a variant in the paths and tables of its floor."""
    return FLOOR_PREFIX + variant


def is_floor(variant: str) -> bool:
    """Whether this is the name of a floor; `gaussian` is a variant of its own."""
    return variant.startswith(FLOOR_PREFIX)


def has_model(variant: str) -> bool:
    """Whether a variant has weights, and so forward passes and a loss; floors have none."""
    return not is_floor(variant) and not VARIANTS[variant].sampled_from


def is_positive_control(variant: str) -> bool:
    """Whether a variant is trained like the subject, from another seed."""
    return VARIANTS[variant].role == "positive control"


def is_null(variant: str) -> bool:
    """Whether a good metric tells a variant from `trained`."""
    return variant != "trained" and not is_positive_control(variant)


def runs_on_trained(variant: str) -> bool:
    """Whether a variant runs on the weights of `trained`, and has no copy of them."""
    return has_model(variant) and not VARIANTS[variant].has_own_weights()


def fitted_to(variant: str, draw: int) -> tuple[str, int] | None:
    """Variant and draw whose activations Gaussian ones are fitted to; None for what is captured.

    The draws of `gaussian` are independent samples of one fit, since `trained` has one draw. A
    draw of a floor is fitted to the same draw of its variant.
    """
    if is_floor(variant):
        return variant.removeprefix(FLOOR_PREFIX), draw
    if has_model(variant):
        return None
    source = VARIANTS[variant].sampled_from
    return source, 0 if VARIANTS[source].fixed else draw


@cache
def _with_floors(names: tuple[str, ...]) -> tuple[str, ...]:
    return (*names, *(floor_name(name) for name in names if has_model(name)))


VariantName = Annotated[str, OneOf(lambda: VARIANTS)]
ModelName = Annotated[str, OneOf(lambda: _with_floors(tuple(VARIANTS)))]
"""A variant, or a floor."""
