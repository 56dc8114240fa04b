"""Are the marked tokens those that activate the latent?"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nullsae.autointerp.scorers.asking import AskingScorer
from nullsae.config.latents import SilentKind


class FuzzingScorer(AskingScorer):
    """Are these the tokens that the latent is active at?"""

    name: ClassVar[str] = "fuzzing"
    position: ClassVar[int] = 1

    kind: Literal["fuzzing"]
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked if it is active above this share of its window's maximum."""
    negatives: SilentKind | Literal["misplaced"] = "random"
    """Where wrong marks are: in silent windows (one of `latents.silent_windows`), or, `misplaced`,
    in the active windows themselves, at tokens where the latent is silent."""

    @property
    def marks_above(self) -> float:
        return self.mark_threshold

    @property
    def text(self) -> str:
        return (
            "The judge says whether the marked tokens are those that the latent fires on."
            + self.negatives_text
        )
