"""Does a window activate the latent?"""

from __future__ import annotations

from typing import ClassVar, Literal

from nullsae.autointerp.scorers.asking import AskingScorer
from nullsae.config.latents import SilentKind


class DetectionScorer(AskingScorer):
    """Is the latent active in this window?"""

    name: ClassVar[str] = "detection"
    position: ClassVar[int] = 0
    # Fuzzing marks tokens, and so depends more on their identity.
    shown_first: ClassVar[bool] = True

    kind: Literal["detection"]
    negatives: SilentKind = "random"
    """The silent windows to tell from active ones; one of `latents.silent_windows`."""

    @property
    def text(self) -> str:
        return "The judge says whether the latent fires in a window." + self.negatives_text
