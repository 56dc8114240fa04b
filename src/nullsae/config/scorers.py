"""Config key `scorers`: who judges explanations. The kinds are in `autointerp/scorers`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer, Side
from nullsae.config.latents import SilentKind
from nullsae.config.section import Choice, Kind
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.core.registry import Registry

_NEGATIVES = {
    "random": "",
    "co_occurring": " Negatives: windows in which latents fire that often fire with this one.",
    "nearest": " Negatives: windows of much the same tokens in which the latent is silent.",
    "given": "",
    "misplaced": " Negatives: the same windows with marks on tokens where the latent is silent.",
}


class Scorer(Kind):
    """Base of scorers of explanations. A subclass is all that a study knows of a kind."""

    needs_explanations: ClassVar[bool] = True
    """Whether it reads explanations; a scorer that does not runs once per SAE, without explainer.
    """
    side: ClassVar[Side] = "input"
    """The side of the explanations that it judges, as in `Explainer`."""
    has_placebo: ClassVar[bool] = False
    """Whether a judge who knows nothing about the latent also answers the same questions
    (`Judged.placebo`). Other scorers use exchanged explanations as the placebo."""
    relative_seconds: ClassVar[float] = 1.0
    """A job's CPU time per window, relative to that of a formula."""
    negatives: SilentKind | Literal["misplaced", "given"] = "random"
    """The silent windows to tell from active ones; one of `latents.silent_windows`."""

    @property
    def scores_of(self) -> str | None:
        """The explainer whose explanations were judged elsewhere; None for one that judges here."""
        return None

    def judges(self, explainer: str, writer: Explainer) -> bool:
        """Return whether it judges an explainer's explanations, which `writer` wrote."""
        return writer.side == self.side

    @property
    def marks_above(self) -> float | None:
        """Share of a window's maximum above which tokens are marked; None for no marks."""
        return None

    @property
    def model_in_job(self) -> PretrainedSource | GgufSource | None:
        """The model that a job runs in its own process, prepared by `prepare_judge`."""
        return None

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint that the config names as the judge, or None."""
        return None

    @property
    def negatives_text(self) -> str:
        """The end of `text`: what the negatives are, unless they are random windows."""
        return _NEGATIVES[self.negatives]

    def asked(self, writer: Explainer | None) -> Endpoint | None:
        """Return the endpoint that a job asks about explanations of this writer, or None.

        Args:
            writer: None for a scorer that needs no explanations.

        Raises:
            ValueError: it needs an endpoint but none is named; begins with the key.
        """
        return None

    def for_job(self, writer: Explainer | None) -> Self:
        """Return what a job that judges explanations of this writer uses of this section."""
        return self

    def questions(self, counts: WindowCounts) -> Questions:
        """Return what a job asks its endpoint."""
        raise NotImplementedError(f"{type(self).__name__}.questions")

    def tokens_read(self, window_tokens: int) -> tuple[int, int]:
        """Return how many tokens `model_in_job` reads per window: in all passes, and at most at
        once.
        """
        raise NotImplementedError(f"{type(self).__name__}.tokens_read")

    def predict(self, job: Any) -> Any:
        """Judge the windows of a job.

        Args:
            job: an `autointerp.score.ScoreJob`.

        Returns:
            An `autointerp.score.Judged`.

        Raises:
            UserError: a file is missing or damaged, or an endpoint cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__}.predict")


SCORERS = Registry("scorers", Scorer, "nullsae.autointerp.scorers")
AnyScorer = Annotated[Scorer, Choice(SCORERS)]
