"""What a layout of files gives, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from nullsae.autointerp.imported.reading import fail, shown

T = TypeVar("T")
# Of other things in a file, in a message.
MOST_NAMES = 5
METRICS = ("auroc", "auprc", "f1", "balanced_accuracy")


@dataclass(frozen=True)
class About:
    """What of a file is asked for."""

    n_latents: int
    """Of the SAE."""
    source: str | None = None
    """As in the config, and so are `model`, `scores`, `judge` and `metric`."""
    model: str | None = None
    scores: str | None = None
    judge: str | None = None
    metric: str | None = None


class Said(NamedTuple):
    """What a file says of a latent."""

    text: str | None
    """None where it has no explanation."""
    model: str | None
    """Who wrote it."""


class JudgedWindow(NamedTuple):
    """A window that was judged elsewhere."""

    active: bool
    probability: float
    """Of being active, NaN where no answer came."""
    is_label: bool
    """Whether it is a yes or no, as 1 or 0."""
    tokens: tuple[str, ...] = ()
    """Their texts; empty where the file does not say."""
    activations: tuple[float, ...] = ()
    """One for each token; zeros where the latent is silent."""


def judged_window(
    active: bool, probability: float, tokens: list[str], activations: list[float], where: object
) -> JudgedWindow:
    """A window, checked; without activations, an active one counts as strong in its first token.

    Raises:
        UserError: tokens and activations do not fit, or contradict `active`.
    """
    values = activations or [float(active and i == 0) for i in range(len(tokens))]
    if len(tokens) != len(values):
        fail(where, f"{len(tokens)} tokens and {len(values)} activations")
    if active and values and max(values) <= 0:
        fail(where, "the latent is said to be active, and no activation is above 0")
    # One that was shown with wrong marks is silent, whatever fires in it.
    kept = values if active else [0.0] * len(values)
    return JudgedWindow(active, probability, False, tuple(tokens), tuple(kept))


@dataclass
class Scored:
    """What a file says of how well a latent's explanation does."""

    windows: list[JudgedWindow] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    """Columns of the table `scores`, where the file gives no windows."""
    judge: str | None = None


class Selection:
    """Which of the things in a file are asked for, by the keys of a config that say so."""

    def __init__(self, **wanted: str | None) -> None:
        self._wanted = wanted
        self._others = {key: set[str]() for key in wanted}

    def takes(self, key: str, value: str | None) -> bool:
        """Whether a thing with this value is asked for."""
        if self._wanted[key] in (None, value):
            return True
        if len(self._others[key]) < MOST_NAMES:
            self._others[key].add(shown(value))
        return False

    def of(self, found: dict[int, T], path: object) -> dict[int, T]:
        """What was taken; a `UserError` if that is nothing, with what there is."""
        for key, others in self._others.items():
            if others and not found:
                names = ", ".join(sorted(others))
                fail(path, f"nothing of `{key}` {shown(self._wanted[key])} in it, but of {names}")
        if not found:
            fail(path, "nothing in it for any latent")
        return found


class OncePerLatent(Generic[T]):
    """What a file says of each latent, which must be one thing."""

    def __init__(self, hint: str) -> None:
        """`hint` says what to do where a latent has two."""
        self.found: dict[int, T] = {}
        self._hint, self._where = hint, dict[int, object]()

    def add(self, latent: int, value: T, where: object) -> None:
        """Take what stands at a place; a `UserError` if the latent has something already."""
        if latent in self.found:
            fail(
                where,
                f"latent {latent} has one already, from {self._where[latent]}; {self._hint}",
            )
        self.found[latent], self._where[latent] = value, where


class Layout:
    """A way of keeping explanations and scores."""

    def explanations(self, path: Path, about: About) -> Mapping[int, Said]:
        """The explanations at a path, by latent.

        Raises:
            UserError: what is wrong with a file, in one line.
        """
        raise NotImplementedError

    def scores(self, path: Path, about: About) -> Mapping[int, Scored]:
        """The scores at a path, by latent; a `UserError` as from `explanations`."""
        raise NotImplementedError
