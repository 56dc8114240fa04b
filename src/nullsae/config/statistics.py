"""Config key `statistics`: how uncertainty is computed and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, create_model

from nullsae.config.metrics import METRICS
from nullsae.config.section import Section, Share

if TYPE_CHECKING:

    class MarginShares(Section):
        """A share for each metric, by its name."""

        def __init__(self, **shares: float) -> None: ...

    class EquivalenceMargins(Section):
        """A positive number, or None, for each metric, by its name."""

        def __init__(self, **margins: float | None) -> None: ...

else:
    MarginShares = create_model(
        "MarginShares",
        __base__=Section,
        __module__=__name__,
        __doc__="Differences below these shares of |trained - floor| count as none.",
        **{
            name: (
                Share,
                Field(metric.margin_share, description=f"Of |trained - {metric.floor:g}|."),
            )
            for name, metric in METRICS.items()
        },
    )
    EquivalenceMargins = create_model(
        "EquivalenceMargins",
        __base__=Section,
        __module__=__name__,
        __doc__="Absolute margins, each in the unit of its metric, instead of those shares.",
        **dict.fromkeys(METRICS, (PositiveFloat | None, None)),
    )


class Statistics(Section):
    """How uncertainty is computed, and how verdicts follow from it."""

    n_resamples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap resamples, and random permutations."""
    confidence: Share = 0.95
    """Confidence level of the intervals; 1 minus it is the level of the tests."""
    margin_shares: MarginShares = MarginShares()
    equivalence_margins: EquivalenceMargins = EquivalenceMargins()
    max_training_token_ratio: Annotated[float, Field(ge=1)] | None = 1.5
    """Arms whose training tokens differ by more than this factor, or are unknown, get no verdict;
    null for no such rule."""
    max_l0_difference: Share | None = 0.1
    """Arms whose L0 differs from the trained one's by more than this share get no verdict; null for
    no such rule."""
    single_token_share: Share = 0.9
    """A latent with at least this peak token share is a single-token latent."""
    abstract_min_entropy_bits: NonNegativeFloat = 4.0
    """A latent is abstract if its token entropy (whole split, corrected) is at least this and its
    explanation scores at least `abstract_min_auroc`."""
    abstract_min_auroc: Share = 0.8
    """See `abstract_min_entropy_bits`."""

    def margin(self, metric: str, real: float) -> float:
        """Return the margin of a metric, in its unit, if the real thing has the value `real`."""
        absolute = self.absolute_margin(metric)
        if absolute is not None:
            return absolute
        share = float(getattr(self.margin_shares, metric))
        return share * abs(real - METRICS[metric].floor)

    def absolute_margin(self, metric: str) -> float | None:
        """Return the margin that the config gives as a number, if any."""
        found: float | None = getattr(self.equivalence_margins, metric)
        return found

    def margin_rule(self, metric: str, real: str = "trained") -> str:
        """Return the margin's rule in words; `real` is the name of the real thing."""
        absolute = self.absolute_margin(metric)
        if absolute is not None:
            return f"{absolute:g}, absolute by statistics.equivalence_margins"
        share = float(getattr(self.margin_shares, metric))
        return f"{share:g} of |{real} - {METRICS[metric].floor:g}|"
