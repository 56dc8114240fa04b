"""Config key `statistics`: how uncertainty is computed and judged."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from nullsae.config.section import Section, Share


class EquivalenceMargins(Section):
    """Differences smaller than these count as none (two one-sided tests)."""

    explained_variance: PositiveFloat = 0.05
    above_gaussian_floor: PositiveFloat = 0.05
    cosine: PositiveFloat = 0.05
    l1: PositiveFloat = 0.1
    """As a share of the trained value: its unit is the subject's own."""
    ce_score: PositiveFloat = 0.05
    token_entropy_bits: PositiveFloat = 0.25
    explain_token_entropy_bits: PositiveFloat = 0.25
    peak_token_share: PositiveFloat = 0.05
    single_token_share: PositiveFloat = 0.1
    autocorrelation: PositiveFloat = 0.05
    auroc: PositiveFloat = 0.05
    auprc: PositiveFloat = 0.05
    f1: PositiveFloat = 0.05
    balanced_accuracy: PositiveFloat = 0.05
    gain_over_lexical: PositiveFloat = 0.05
    discrimination: PositiveFloat = 0.05
    abstract_share: PositiveFloat = 0.1
    entropy_auroc_correlation: PositiveFloat = 0.1


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
