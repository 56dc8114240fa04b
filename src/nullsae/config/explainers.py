"""Config key `explainers`: who explains latents. The kinds are in `autointerp/explainers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.section import Choice, Kind
from nullsae.core.registry import Registry

if TYPE_CHECKING:
    import pyarrow as pa


Side = Literal["input", "output"]


class Explainer(Kind):
    """Base of explainers of latents. A subclass is all that a study knows of a kind."""

    side: ClassVar[Side] = "input"
    """What its explanations describe: when a latent fires (`input`), or which next tokens it makes
    likelier (`output`). A scorer judges explanations of its own side. A placebo has the side of
    the explainer whose explanations it exchanges."""
    made_elsewhere: ClassVar[bool] = False
    """Whether its explanations are read from files, so that their scores may be, too."""
    has_statistics: ClassVar[bool] = False
    """Whether its explanations contain token statistics; others are only text."""

    @property
    def exchanges(self) -> str | None:
        """The explainer whose explanations this placebo exchanges; None for one that writes."""
        return None

    @property
    def is_baseline(self) -> bool:
        """Whether it is the baseline of `gain_over_lexical`: it knows only single tokens."""
        return False

    @property
    def judged_by_formula(self) -> bool:
        """Whether a formula, rather than a language model, judges its explanations."""
        return self.has_statistics

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint that a job asks; None if it asks none."""
        return None

    @property
    def judge(self) -> Endpoint | None:
        """The endpoint that judges its explanations if a scorer names none: the writer's."""
        if self.endpoint is None:
            return None
        return Endpoint(**self.endpoint.model_dump(include=set(Endpoint.model_fields)))

    def questions(self, counts: WindowCounts) -> Questions:
        """Return what a job asks its endpoint."""
        raise NotImplementedError(f"{type(self).__name__}.questions")

    def explain(self, job: Any) -> pa.Table:
        """Explain the latents of a job.

        Args:
            job: an `autointerp.explain.ExplainJob`.

        Returns:
            The columns of the table `explanations`, sorted by latent.

        Raises:
            UserError: a file is missing or damaged, or an endpoint cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__}.explain")


EXPLAINERS = Registry("explainers", Explainer, "nullsae.autointerp.explainers")
AnyExplainer = Annotated[Explainer, Choice(EXPLAINERS)]
