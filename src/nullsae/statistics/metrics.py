"""The metrics that variants are compared by: their source and the way they should point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric is a ratio of sums over units: documents of the split, or sampled latents."""

    name: str
    title: str
    """What stands on an axis, with the unit."""
    table: Literal["documents", "latents", "scores"]
    numerator: str
    """Column summed over units. Rows with a null here are left out."""
    denominator: str | None = None
    """Column summed over units; without one, the metric is the mean over units."""
    complement: bool = False
    """The metric is 1 minus the ratio."""
    direction: Literal[-1, 0, 1] = 1
    """The sign of (trained minus null) if the metric sees structure that training made; 0: none
    is expected, and a difference either way separates."""

    margin_is_share: bool = False
    """The equivalence margin is a share of the trained value, because the unit is the subject's."""

    @property
    def unit(self) -> Literal["document", "latent"]:
        """What is resampled within a draw and seed."""
        return "document" if self.table == "documents" else "latent"


METRICS: tuple[Metric, ...] = (
    Metric(
        "explained_variance",
        "Explained variance",
        "documents",
        "squared_error",
        "squared_deviation",
        complement=True,
    ),
    Metric("cosine", "Cosine similarity", "documents", "cosine", "n_tokens"),
    Metric(
        "l1",
        "L1 norm of the latents (activation units)",
        "documents",
        "l1",
        "n_tokens",
        direction=0,
        margin_is_share=True,
    ),
    Metric(
        "token_entropy_bits",
        "Token entropy, whole split (bits)",
        "latents",
        "token_entropy_corrected_bits",
    ),
    Metric(
        "explain_token_entropy_bits",
        "Token entropy, explainer's windows (bits)",
        "latents",
        "explain_token_entropy_bits",
    ),
    Metric("peak_token_share", "Peak token share", "latents", "peak_token_share", direction=-1),
    Metric("auroc", "AUROC", "scores", "auroc"),
    Metric("auprc", "AUPRC", "scores", "auprc"),
    Metric("f1", "F1", "scores", "f1"),
    Metric("balanced_accuracy", "Balanced accuracy", "scores", "balanced_accuracy"),
)
"""All metrics, in display order. `latents` uses sampled latents only."""
