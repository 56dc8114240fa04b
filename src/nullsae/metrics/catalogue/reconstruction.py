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
    margin = 0.05

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
    values = "(-∞, 1]"
    along_training = 1


class AboveFloors(_OfDocuments):
    """1 minus FVU over the smaller of two that take no structure: covariance and token identity."""

    name, position = "above_floors", 20
    title = "Share explained above both floors"
    columns = ("squared_error", "squared_deviation", "token_lookup_error")
    form = "relative"
    complement = True
    formula = "1 - FVU / min(FVU_G, FVU_T), FVU = 1 - explained variance"
    definition = (
        "1 - FVU / min(FVU_G, FVU_T). FVU is 1 - explained variance: FVU_G of an SAE of the same "
        "recipe on Gaussian data with this variant's own mean and covariance, FVU_T of the mean "
        "activation per token id."
    )
    reading = (
        "0 means that the SAE explains no more than the covariance or the token alone does, "
        "whichever does more; a null near trained has as much structure beyond both."
    )
    values = "(-∞, 1]"
    floor = "0"
    denominator = "squared_deviation or what a floor leaves"

    def value(self, columns: Mapping[str, Numbers]) -> tuple[Numbers, ...]:
        """Numerator and denominator of FVU, and of FVU_T."""
        error, deviation, looked_up = (columns[name] for name in self.columns)
        return error, deviation, looked_up, deviation


class Cosine(_OfDocuments):
    """Mean cosine of an activation and its reconstruction."""

    name, position = "cosine", 30
    title = "Cosine similarity"
    columns = ("cosine", "n_tokens")
    formula = "mean of x·x̂ / (‖x‖‖x̂‖)"
    definition = "Cosine between an activation and its reconstruction, mean over tokens."
    reading = "It does not subtract the mean, so a large common direction is enough to raise it."
    values = "[-1, 1]"


class L1(_OfDocuments):
    """Mean sum of the absolute activations of a token."""

    name, position = "l1", 40
    title = "L1 norm of the latents (activation units)"
    columns = ("l1", "n_tokens")
    direction = 0
    margin, margin_is_share = 0.1, True
    formula = "mean of Σ_j |a_j|"
    definition = "Sum of the absolute latent activations of a token, mean over tokens."
    reading = (
        "It follows the scale of the activations, which differs by site: compare variants within "
        "a panel only, and expect no direction."
    )
    values = "[0, ∞)"
    sites_share_scale = False
