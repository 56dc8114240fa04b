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
    """Judges windows by explanations. A subclass is all that a study knows of a kind."""

    needs_explanations: ClassVar[bool] = True
    """A scorer that needs none runs once per SAE, under no explainer."""
    side: ClassVar[Side] = "input"
    """The side of the explanations that it judges, as in `Explainer`."""
    has_placebo: ClassVar[bool] = False
    """Whether it has somebody judge the same questions who knows nothing of the latent
    (`Judged.placebo`). Of others, exchanged explanations are the placebo."""
    relative_seconds: ClassVar[float] = 1.0
    """A job's time on the CPU per window, of that of a formula."""
    negatives: SilentKind | Literal["misplaced", "given"] = "random"
    """The silent windows to tell from active ones; one of `latents.silent_windows`."""

    @property
    def scores_of(self) -> str | None:
        """The explainer whose explanations were judged elsewhere; None for one that judges here."""
        return None

    def judges(self, explainer: str, writer: Explainer) -> bool:
        """Whether it judges an explainer's explanations, which this writer wrote."""
        return writer.side == self.side

    @property
    def marks_above(self) -> float | None:
        """A token is marked when it is active above this share of its window's maximum; None if
        windows are shown without marks.
        """
        return None

    @property
    def model_in_job(self) -> PretrainedSource | GgufSource | None:
        """The model that a job runs in its own process, which `prepare_judge` makes ready."""
        return None

    @property
    def endpoint(self) -> Endpoint | None:
        """Whom the config names as the judge; None for nobody."""
        return None

    @property
    def negatives_text(self) -> str:
        """The end of `text`: what negatives are, where they are not random windows."""
        return _NEGATIVES[self.negatives]

    def asked(self, writer: Explainer | None) -> Endpoint | None:
        """Whom a job asks that judges explanations of this writer; None if it asks nobody.

        Args:
            writer: None for a scorer that needs no explanations.

        Raises:
            ValueError: it must ask somebody, and nobody is named; begins with the key.
        """
        return None

    def for_job(self, writer: Explainer | None) -> Self:
        """What of this section a job uses that judges explanations of this writer."""
        return self

    def questions(self, counts: WindowCounts) -> Questions:
        """What a job asks its endpoint."""
        raise NotImplementedError(f"{type(self).__name__}.questions")

    def tokens_read(self, window_tokens: int) -> tuple[int, int]:
        """What `model_in_job` reads for a window of so many tokens: tokens in all passes, and the
        most at once.
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
