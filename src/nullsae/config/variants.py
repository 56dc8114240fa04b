"""Variants: the trained subject and its controls, each a class in a file of its own.

Also Gaussian data. The variant `gaussian` has the mean and covariance of the trained variant's
activations. A floor, `gaussian@V`, has those of any variant V. It is not a variant of a study, but
what SAEs on V's activations are measured against.
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
    """Base of all variants: what is done to a subject, and how it is described.

    A variant is a class without instances. It changes the weights (`changes`), what runs on them
    (`install`), or both.
    """

    name: ClassVar[str]
    """The name in the config key `variants`, in paths and in tables."""
    position: ClassVar[int]
    """Place among all variants, in lists and messages."""
    group: ClassVar[str] = "other"
    """What part of the subject is changed, for the report's list of controls."""
    text: ClassVar[str] = ""
    """What it keeps of the trained subject and what it destroys, in one sentence."""
    look: ClassVar[Look | None] = None
    """Colours, shape and dash in figures; by default made from the name."""
    origin: ClassVar[Literal["source", "trained"]] = "trained"
    """Whether its weights are read from the subject's source or made from the trained ones."""
    sampled_from: ClassVar[str] = ""
    """For a variant without weights: the one whose mean and covariance it has."""
    by_training: ClassVar[bool] = False
    """Whether training a subject here also makes it."""
    role: ClassVar[Literal["null", "positive control"]] = "null"
    """A good metric tells a null from `trained`. A positive control is trained like the subject,
    from another seed: a good metric does not tell the two apart."""
    fixed: ClassVar[bool] = False
    """Whether it is not random, so that it has only draw 0."""
    reads: ClassVar[tuple[str, ...]] = ()
    """The keys of `randomization` that it depends on."""
    purpose: ClassVar[str] = ""
    """Key of its random numbers; by default its name."""
    changes_weights: ClassVar[bool] = True
    """Whether `changes` names any."""

    @classmethod
    def has_own_weights(cls) -> bool:
        """Return whether it has its own weights, rather than those of `trained` or none."""
        return not cls.sampled_from and (cls.changes_weights or cls.origin == "source")

    @classmethod
    def acts_on_passes(cls) -> bool:
        """Return whether it changes more than weights: it has its own `install`."""
        return cls.install.__func__ is not Variant.install.__func__  # type: ignore[attr-defined]

    @classmethod
    def settings(cls, randomization: Randomization) -> dict[str, Any]:
        """Return the settings of `randomization` that it depends on, by key."""
        return {key: getattr(randomization, key) for key in cls.reads}

    @classmethod
    def describe(cls, randomization: Randomization) -> str:
        """Return `text` under these settings."""
        keeps = "norm_parameters" in cls.reads and randomization.norm_parameters == "keep"
        return cls.text + (" Normalization layers are kept." if keeps else "")

    @classmethod
    def draws(cls, source: Any, n: int) -> range:
        """Return its draws in a study of `n` draws, for a subject from this source."""
        return range(1 if cls.fixed else n)

    @classmethod
    def source_of(cls, source: Any, draw: int) -> Any:
        """Return the part of a subject's source that one draw depends on.

        It lacks what only other variants read, so that an edit of that runs nothing again here.
        """
        if getattr(source, "retrained", None) is None:
            return source
        return source.model_copy(update={"retrained": None})

    @classmethod
    def weights_of(cls, source: Any) -> tuple[str, str | None, str, str]:
        """Return path and revision of its weights in a pretrained source, and their keys."""
        return source.weights_of(step0=False)  # type: ignore[no-any-return]

    @classmethod
    def lacks(cls, source: Any) -> str | None:
        """Return what it needs that a subject's source lacks; None if nothing.

        Returns:
            The key below `source`, a colon, and what is wrong with it.
        """
        made = source.kind == "pretrained" or (cls.by_training and source.kind == "train")
        if cls.origin != "source" or made:
            return None
        return f"kind: {source.kind!r} has no weights of {cls.name}"

    @classmethod
    def resolve(cls, model: Any, settings: Settings, subject: str) -> Settings:
        """Return the settings for one model, with defaults that depend on it filled in.

        Raises:
            UserError: they do not fit the model; names the config key and the subject.
        """
        return settings

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Any]:
        """Return the `nullsae.subjects.changes.Change` of each changed parameter, by its name.

        Tied tensors appear once in `named_parameters`, so they are drawn once and stay tied.
        """
        return {}

    @classmethod
    def install(cls, subject: Any) -> None:
        """Change what runs on the weights of a loaded `nullsae.subjects.loading.Subject`."""

    @classmethod
    def gates(cls, subject: Any, probe: Any) -> list[Any]:
        """Return gates on what `install` does.

        Args:
            subject: the variant after saving and loading.
            probe: token ids [contexts, tokens], the first of `eval`.
        """
        return []


VARIANTS = Registry("variants", Variant, "nullsae.subjects.variants")


def floor_name(variant: str) -> str:
    """Return the name of a variant's floor in paths and tables."""
    return FLOOR_PREFIX + variant


def is_floor(variant: str) -> bool:
    """Return whether this is the name of a floor; `gaussian` is a variant instead."""
    return variant.startswith(FLOOR_PREFIX)


def has_model(variant: str) -> bool:
    """Return whether a variant has weights, and so forward passes and a loss; floors do not."""
    return not is_floor(variant) and not VARIANTS[variant].sampled_from


def is_positive_control(variant: str) -> bool:
    """Return whether a variant is trained like the subject, from another seed."""
    return VARIANTS[variant].role == "positive control"


def is_null(variant: str) -> bool:
    """Return whether a good metric tells a variant from `trained`."""
    return variant != "trained" and not is_positive_control(variant)


def runs_on_trained(variant: str) -> bool:
    """Return whether a variant runs on the weights of `trained`, without a copy of them."""
    return has_model(variant) and not VARIANTS[variant].has_own_weights()


def fitted_to(variant: str, draw: int) -> tuple[str, int] | None:
    """Return the variant and draw that Gaussian activations are fitted to; None for captured ones.

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
