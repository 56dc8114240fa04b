"""Config key `statistics`: how uncertainty is computed and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, create_model

from nullsae.config.metrics import METRICS
from nullsae.config.section import Section, Share

if TYPE_CHECKING:

    class EquivalenceMargins(Section):
        """A positive number for each metric, by its name."""

        def __init__(self, **margins: float) -> None: ...

else:
    _SHARE = "As a share of the trained value: its unit is the subject's own."
    EquivalenceMargins = create_model(
        "EquivalenceMargins",
        __base__=Section,
        __module__=__name__,
        __doc__="Differences smaller than these count as none (two one-sided tests).",
        **{
            name: (
                PositiveFloat,
                Field(metric.margin, description=_SHARE if metric.margin_is_share else None),
            )
            for name, metric in METRICS.items()
        },
    )


class Statistics(Section):
    """How uncertainty is computed and judged."""

    n_resamples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap resamples, and random permutations."""
    confidence: Share = 0.95
    """Level of the intervals; 1 minus it is the level of the tests."""
    equivalence_margins: EquivalenceMargins = EquivalenceMargins()
    single_token_share: Share = 0.9
    """A latent with at least this peak token share is a single-token latent."""
    abstract_min_entropy_bits: NonNegativeFloat = 4.0
    """A latent of at least this token entropy (whole split, corrected) whose explanation scores at
    least `abstract_min_auroc` is abstract."""
    abstract_min_auroc: Share = 0.8
    """See `abstract_min_entropy_bits`."""

    def margin(self, metric: str) -> float:
        """The equivalence margin of a metric, in its unit or as a share of the trained value."""
        return float(getattr(self.equivalence_margins, metric))
