"""How well an SAE copies activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nullsae.config.metrics import Form, Metric

if TYPE_CHECKING:
    from nullsae.config.metrics import Numbers


class _OfDocuments(Metric):
    """A ratio of sums over documents."""

    table, section = "documents", "reconstruction"
    form: Form = "ratio"
    floor = 0.0

    def undefined(self, columns: Mapping[str, Numbers]) -> str | None:
        """A site where all tokens have the same activation has no variance to explain."""
        deviation = columns.get("squared_deviation")
        if deviation is None or not len(deviation) or deviation.any():
            return None
        return "the site has no variance"


class ExplainedVariance(_OfDocuments):
    """1 minus the fraction of variance unexplained (FVU)."""

    name, position = "explained_variance", 10
    title = "Explained variance"
    columns = ("squared_error", "squared_deviation")
    complement = True
    definition = (
        "1 - Σ‖x - x̂‖² / Σ‖x - x̄‖² over the whole evaluation split: predicting the mean gives 0, "
        "a perfect copy 1."
    )
    reading = (
        "A null as high as trained means that the SAE reconstructs activations that no training "
        "shaped just as well."
    )
    floor_is = "the mean"
    values = "(-∞, 1]"
    along_training = 1


class AboveGaussianFloor(_OfDocuments):
    """1 minus FVU over that of the Gaussian floor."""

    name, position = "above_gaussian_floor", 20
    title = "Share of structure above the Gaussian floor"
    columns = ("squared_error", "squared_deviation")
    form = "relative"
    complement = True
    definition = (
        "1 - FVU / FVU of an SAE of the same recipe on Gaussian data with this variant's own "
        "mean and covariance; FVU is 1 - explained variance."
    )
    reading = (
        "0 means that the SAE found nothing beyond what the covariance alone allows; a null "
        "near trained has as much structure to find, learned or not."
    )
    floor_is = "what the covariance alone allows"
    values = "(-∞, 1]"


class Cosine(_OfDocuments):
    """Mean cosine of an activation and its reconstruction."""

    name, position = "cosine", 30
    title = "Cosine similarity"
    columns = ("cosine", "n_tokens")
    margin_share = 0.05
    formula = "mean of x·x̂ / (‖x‖‖x̂‖)"
    definition = "Cosine between an activation and its reconstruction, mean over tokens."
    reading = "It does not subtract the mean, so a large common direction is enough to raise it."
    values = "[-1, 1]"


class L1Ratio(_OfDocuments):
    """Mean L1 norm of the latents over the mean norm of the activations."""

    name, position = "l1_ratio", 40
    title = "L1 norm of the latents over the norm of the activations"
    columns = ("l1", "norm")
    direction = 0
    floor_is = "no latent fires"
    formula = "mean of Σ_j |a_j| over mean ‖x‖"
    definition = (
        "Sum of the absolute latent activations of a token over the norm of its activation, both "
        "averaged over tokens: how much activity the SAE spends, whatever the scale of the site."
    )
    reading = (
        "1 is one latent along each activation. No direction is expected: it grows as a "
        "reconstruction is shared out over more latents that point elsewhere."
    )
    values = "[0, ∞)"
