"""A scorer: a judge who throws a coin, the floor of every other one."""

from __future__ import annotations

from typing import ClassVar, Literal

from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.config.scorers import Scorer
from nullsae.core.randomness import numpy_generator


class CoinScorer(Scorer):
    """Probabilities that know nothing of the window."""

    name: ClassVar[str] = "coin"

    kind: Literal["coin"]

    @property
    def text(self) -> str:
        return "The judge throws a coin: what the numbers say of nothing."

    def predict(self, job: ScoreJob) -> Judged:
        generator = numpy_generator(job.params.seed, "coin", *job.params.keys.parts())
        n = len(job.examples.latent)
        return Judged(generator.random(n), ["statistics"] * n)
