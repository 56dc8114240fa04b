"""Do the tokens that the latent promotes come next?"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from nullsae.autointerp.examples import Examples, Flags
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.autointerp.scorers.asking import judge_by_tokens
from nullsae.config.explainers import Side
from nullsae.config.latents import SilentKind
from nullsae.config.scorers import Scorer


class ContinuationScorer(Scorer):
    """Which window continues as the latent promotes? A formula judges, without a model."""

    name: ClassVar[str] = "continuation"
    position: ClassVar[int] = 4
    side: ClassVar[Side] = "output"

    kind: Literal["continuation"]
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """The tokens after those that are active above this share of their window's maximum are judged.
    In silent windows, as many as in an active window, after tokens of similar frequency."""
    negatives: SilentKind | Literal["misplaced"] = "random"
    """The silent windows to tell from active ones, one of `latents.silent_windows`; or, with
    `misplaced`, the active windows themselves, after tokens where the latent is silent."""

    @property
    def marks_above(self) -> float:
        return self.mark_threshold

    @property
    def text(self) -> str:
        return (
            "The judge says from the tokens that come next whether the latent fired before them."
            + self.negatives_text
        )

    def predict(self, job: ScoreJob) -> Judged:
        """Judge windows by the largest probability among the tokens that follow marks.

        Windows in which nothing follows a mark are left out, and so are unexplained latents.
        """
        examples, explained = job.examples, job.explained
        known = explained["latent"].to_numpy()[explained["base_probability"].is_valid().to_numpy()]
        rows = np.flatnonzero(_any(examples, after_marks(examples)))
        rows = rows[np.isin(examples.latent[rows], known)]
        if not len(rows):
            return Judged(np.empty(0), [], examples=examples.take(rows))
        judged = examples.take(rows)
        probability = judge_by_tokens(judged, explained, after_marks(judged))
        return Judged(probability, ["statistics"] * len(rows), examples=judged)


def after_marks(examples: Examples) -> Flags:
    """Return which tokens directly follow a marked one in their window: bool [n_positions]."""
    behind = np.roll(examples.marked, 1)
    behind[examples.starts[:-1]] = False
    return behind


def _any(examples: Examples, flags: Flags) -> Flags:
    """Return which windows have a flag, bool [n_examples]."""
    if not len(examples.latent):
        return np.empty(0, dtype=bool)
    return np.logical_or.reduceat(flags, examples.starts[:-1])
