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
    """Explains the latents of an SAE. A subclass is all that a study knows of a kind."""

    side: ClassVar[Side] = "input"
    """What its explanations say: when a latent fires (`input`), or what it makes likelier to come
    next (`output`). A scorer judges explanations of its own side. A placebo's side is that of what
    it exchanges."""
    has_statistics: ClassVar[bool] = False
    """Whether its explanations hold token statistics. Others are text alone."""

    @property
    def exchanges(self) -> str | None:
        """The explainer whose explanations this placebo exchanges; None for one that writes."""
        return None

    @property
    def is_baseline(self) -> bool:
        """Whether `gain_over_lexical` is measured from it: it knows single tokens only."""
        return False

    @property
    def judged_by_formula(self) -> bool:
        """Whether a formula judges its explanations, by their statistics; else a language model."""
        return self.has_statistics

    @property
    def endpoint(self) -> Endpoint | None:
        """Whom a job asks; None if it asks nobody."""
        return None

    @property
    def judge(self) -> Endpoint | None:
        """Who judges its explanations where a scorer names nobody: by default who wrote them."""
        if self.endpoint is None:
            return None
        return Endpoint(**self.endpoint.model_dump(include=set(Endpoint.model_fields)))

    def questions(self, counts: WindowCounts) -> Questions:
        """What a job asks its endpoint."""
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
