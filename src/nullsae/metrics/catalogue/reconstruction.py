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
        """Return why there is no value: equal activations have no variance to explain."""
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
        "a perfect copy 1. Of a transcoder, x is its output site."
    )
    reading = (
        "If a null is as high as trained, the SAE reconstructs activations that no training shaped "
        "just as well."
    )
    floor_is = "the mean"
    values = "(-∞, 1]"
    is_usual = True
    along_training = 1


class AboveFloors(_OfDocuments):
    """1 minus FVU over the smaller of two that need no structure: covariance and token identity."""

    name, position = "above_floors", 20
    title = "Share explained above both floors"
    columns = ("squared_error", "squared_deviation", "token_lookup_error")
    # They are their own floor.
    has_value_on_samples = False
    form = "relative"
    complement = True
    formula = "1 - FVU / min(FVU_G, FVU_T), FVU = 1 - explained variance"
    definition = (
        "1 - FVU / min(FVU_G, FVU_T). FVU is 1 - explained variance: FVU_G of an SAE of the same "
        "recipe on Gaussian data with this variant's own mean and covariance, FVU_T of the mean "
        "activation per token id."
    )
    reading = (
        "0 means that the SAE explains no more than the better of covariance and token identity "
        "alone. A null near trained has as much structure beyond both."
    )
    floor_is = "what the better of covariance and token identity allows"
    values = "(-∞, 1]"
    denominator = "squared_deviation or what a floor leaves"

    def value(self, columns: Mapping[str, Numbers]) -> tuple[Numbers, ...]:
        """Return numerator and denominator of FVU, and of FVU_T."""
        error, deviation, looked_up = (columns[name] for name in self.columns)
        return error, deviation, looked_up, deviation


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
        "averaged over tokens: how much activity the SAE spends, independent of the site's scale."
    )
    reading = (
        "1 corresponds to one latent along each activation. No direction is expected: the ratio "
        "grows when more latents that point elsewhere share a reconstruction."
    )
    values = "[0, ∞)"
