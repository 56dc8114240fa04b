"""The common interface of all layouts of imported files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from nullsae.autointerp.imported.reading import fail, shown

T = TypeVar("T")
# Other values in a file that a message lists.
MOST_NAMES = 5
METRICS = ("auroc", "auprc", "f1", "balanced_accuracy")


@dataclass(frozen=True)
class About:
    """What is requested from a file."""

    n_latents: int
    """Of the SAE."""
    source: str | None = None
    """As in the config, like `model`, `scores`, `judge` and `metric`."""
    model: str | None = None
    scores: str | None = None
    judge: str | None = None
    metric: str | None = None


class Said(NamedTuple):
    """A file's explanation of a latent."""

    text: str | None
    """None if it has no explanation."""
    model: str | None
    """Who wrote it."""


class JudgedWindow(NamedTuple):
    """A window that was judged elsewhere."""

    active: bool
    probability: float
    """Of being active; NaN without an answer."""
    is_label: bool
    """Whether it is a yes or no, as 1 or 0."""
    tokens: tuple[str, ...] = ()
    """Their texts; empty if unknown."""
    activations: tuple[float, ...] = ()
    """One per token; zeros if the latent is silent."""


def judged_window(
    active: bool, probability: float, tokens: list[str], activations: list[float], where: object
) -> JudgedWindow:
    """Check a window; without activations, an active one counts as strong in its first token.

    Raises:
        UserError: tokens and activations do not match, or contradict `active`.
    """
    values = activations or [float(active and i == 0) for i in range(len(tokens))]
    if len(tokens) != len(values):
        fail(where, f"{len(tokens)} tokens and {len(values)} activations")
    if active and values and max(values) <= 0:
        fail(where, "the latent is marked as active, but no activation is above 0")
    # A window that was shown with wrong marks is silent, whatever fires in it.
    kept = values if active else [0.0] * len(values)
    return JudgedWindow(active, probability, False, tuple(tokens), tuple(kept))


@dataclass
class Scored:
    """A file's scores of a latent's explanation."""

    windows: list[JudgedWindow] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    """Columns of the table `scores`, if the file has no windows."""
    judge: str | None = None


class Selection:
    """Selects entries of a file by keys of the config."""

    def __init__(self, **wanted: str | None) -> None:
        self._wanted = wanted
        self._others = {key: set[str]() for key in wanted}

    def takes(self, key: str, value: str | None) -> bool:
        """Return whether an entry with this value is requested."""
        if self._wanted[key] in (None, value):
            return True
        if len(self._others[key]) < MOST_NAMES:
            self._others[key].add(shown(value))
        return False

    def of(self, found: dict[int, T], path: object) -> dict[int, T]:
        """Return what was selected; a `UserError` if nothing, with the values that exist."""
        for key, others in self._others.items():
            if others and not found:
                names = ", ".join(sorted(others))
                fail(path, f"has no `{key}` {shown(self._wanted[key])}, only {names}")
        if not found:
            fail(path, "nothing in it for any latent")
        return found


class OncePerLatent(Generic[T]):
    """The entries of a file by latent, at most one each."""

    def __init__(self, hint: str) -> None:
        """`hint` says what to do if a latent has two."""
        self.found: dict[int, T] = {}
        self._hint, self._where = hint, dict[int, object]()

    def add(self, latent: int, value: T, where: object) -> None:
        """Add an entry from a place; raise a `UserError` if the latent already has one."""
        if latent in self.found:
            fail(
                where,
                f"latent {latent} has one already, from {self._where[latent]}; {self._hint}",
            )
        self.found[latent], self._where[latent] = value, where


class Layout:
    """A file layout of explanations and scores."""

    def explanations(self, path: Path, about: About) -> Mapping[int, Said]:
        """Read the explanations at a path, by latent.

        Raises:
            UserError: what is wrong with a file, in one line.
        """
        raise NotImplementedError

    def scores(self, path: Path, about: About) -> Mapping[int, Scored]:
        """Read the scores at a path, by latent; raises like `explanations`."""
        raise NotImplementedError
