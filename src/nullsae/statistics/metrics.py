"""The metrics that variants are compared by: their source and the way they should point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["documents", "latents", "scores", "interpretability"]
Form = Literal["mean", "ratio", "recovered", "relative", "rank_correlation"]


@dataclass(frozen=True)
class Metric:
    """A statistic of units: documents of the split, or sampled latents."""

    name: str
    title: str
    """What stands on an axis, with the unit."""
    table: Source
    columns: tuple[str, ...]
    """What it is computed from. Units with a null in one of them are left out."""
    form: Form = "mean"
    """`mean`: over units. `ratio`: of the sums of two columns. `recovered`: ce_score.
    `relative`: that ratio over the same one of the Gaussian floor. `rank_correlation`: Spearman's,
    of two columns."""
    complement: bool = False
    """The metric is 1 minus that."""
    direction: Literal[-1, 0, 1] = 1
    """The sign of (trained minus null) if the metric sees structure that training made; 0: none
    is expected, and a difference either way separates."""
    margin_is_share: bool = False
    """The equivalence margin is a share of the trained value, because the unit is the subject's."""
    at_least: str | None = None
    """The setting in `statistics` that a unit's column must reach to count as 1, else 0."""

    @property
    def unit(self) -> Literal["document", "latent"]:
        """What is resampled within a draw and seed."""
        return "document" if self.table == "documents" else "latent"

    @property
    def is_scored(self) -> bool:
        """Whether it belongs to an explainer and a scorer."""
        return self.table in ("scores", "interpretability")

    @property
    def found_in(self) -> str:
        """The columns in words."""
        return " or ".join(self.columns)


METRICS: tuple[Metric, ...] = (
    Metric(
        "explained_variance",
        "Explained variance",
        "documents",
        ("squared_error", "squared_deviation"),
        "ratio",
        complement=True,
    ),
    Metric(
        "above_gaussian_floor",
        "Share of structure above the Gaussian floor",
        "documents",
        ("squared_error", "squared_deviation"),
        "relative",
        complement=True,
    ),
    Metric("cosine", "Cosine similarity", "documents", ("cosine", "n_tokens"), "ratio"),
    Metric(
        "l1",
        "L1 norm of the latents (activation units)",
        "documents",
        ("l1", "n_tokens"),
        "ratio",
        direction=0,
        margin_is_share=True,
    ),
    Metric(
        "ce_score",
        "Cross-entropy score",
        "documents",
        ("ce_clean", "ce_sae", "ce_zero", "fidelity_tokens"),
        "recovered",
    ),
    Metric(
        "token_entropy_bits",
        "Token entropy, whole split (bits)",
        "latents",
        ("token_entropy_corrected_bits",),
    ),
    Metric(
        "explain_token_entropy_bits",
        "Token entropy, explainer's windows (bits)",
        "latents",
        ("explain_token_entropy_bits",),
    ),
    Metric("peak_token_share", "Peak token share", "latents", ("peak_token_share",), direction=-1),
    Metric(
        "single_token_share",
        "Share of single-token latents",
        "latents",
        ("peak_token_share",),
        direction=-1,
        at_least="single_token_share",
    ),
    Metric(
        "autocorrelation",
        "Autocorrelation of activations",
        "latents",
        ("autocorrelation",),
        direction=0,
    ),
    Metric("auroc", "AUROC", "scores", ("auroc",)),
    Metric("auprc", "AUPRC", "scores", ("auprc",)),
    Metric("f1", "F1", "scores", ("f1",)),
    Metric("balanced_accuracy", "Balanced accuracy", "scores", ("balanced_accuracy",)),
    Metric(
        "gain_over_lexical",
        "AUROC gained over token statistics",
        "interpretability",
        ("gain_over_lexical",),
    ),
    Metric(
        "discrimination",
        "AUROC gained over another latent's explanation",
        "interpretability",
        ("discrimination",),
    ),
    Metric(
        "abstract_share",
        "Share of abstract latents",
        "interpretability",
        ("is_abstract",),
    ),
    Metric(
        "entropy_auroc_correlation",
        "Rank correlation of token entropy and AUROC",
        "interpretability",
        ("token_entropy_bits", "auroc"),
        "rank_correlation",
    ),
)
"""All metrics, in display order. `latents` uses sampled latents only."""
