"""What each figure shows and how to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FigureText:
    """Caption of one kind of figure; metrics take their title from `statistics.metrics`."""

    definition: str
    reading: str
    title: str = ""


CHANCE = {"auroc": 0.5, "balanced_accuracy": 0.5}
"""What a judge gets who knows nothing."""
_SCORE = "Averaged over latents, each judged on its own windows; failed replies are left out."

METRIC_TEXT: dict[str, FigureText] = {
    "explained_variance": FigureText(
        "1 - Σ‖x - x̂‖² / Σ‖x - x̄‖² over the whole evaluation split: predicting the mean gives 0, "
        "a perfect copy 1.",
        "A null as high as trained means that the SAE reconstructs activations that no training "
        "shaped just as well.",
    ),
    "cosine": FigureText(
        "Cosine between an activation and its reconstruction, mean over tokens.",
        "It does not subtract the mean, so a large common direction is enough to raise it.",
    ),
    "l1": FigureText(
        "Sum of the absolute latent activations of a token, mean over tokens.",
        "It follows the scale of the activations, which differs by site: compare variants within "
        "a panel only, and expect no direction.",
    ),
    "token_lookup": FigureText(
        "Explained variance of the SAE beside that of a table that predicts the mean activation of "
        "each token id.",
        "Where the table comes close to the SAE, or beats it, the activations carry little more "
        "than token identity.",
        title="SAE and token lookup",
    ),
    "token_entropy_bits": FigureText(
        "Entropy of the token ids on which a latent fires, weighted by activation, over the whole "
        "evaluation split, with the Miller-Madow correction.",
        "0 bits is a latent of one token; a null far below trained has latents that name tokens.",
    ),
    "explain_token_entropy_bits": FigureText(
        "The same entropy over the windows that the explainer saw, as in arXiv 2501.17727.",
        "With few windows it is bounded by their number; prefer the whole split.",
    ),
    "peak_token_share": FigureText(
        "The largest share of a latent's activation that falls on one token id.",
        "1 is a latent of one token; a null above trained has latents closer to token detectors.",
    ),
    "auroc": FigureText(
        "Chance that the judge, given the explanation, ranks an active window above a silent one. "
        + _SCORE,
        "Explanations help where the score is above 0.5; the metric sees what training made only "
        "where trained scores above the nulls.",
    ),
    "auprc": FigureText(
        "Area under the precision-recall curve of the judge's probabilities. " + _SCORE,
        "Its floor is the share of active windows, not 0; compare it with the nulls.",
    ),
    "f1": FigureText(
        "Harmonic mean of precision and recall of the judge's yes or no. " + _SCORE,
        "A judge that always says yes already scores high where half of the windows are active.",
    ),
    "balanced_accuracy": FigureText(
        "Mean of the shares of active and of silent windows that the judge gets right. " + _SCORE,
        "Explanations help where the score is above 0.5.",
    ),
    "entropy_auroc": FigureText(
        "Each mark is one sampled latent: how many tokens it fires on against how well its "
        "explanation predicts it.",
        "If high scores stand at the left, they come from token identity; a cloud of trained above "
        "the nulls at the same entropy is what the metric should show.",
        title="Score against token entropy",
    ),
    "cross_entropy": FigureText(
        "Loss of the subject on its next token: untouched (clean), with the activation replaced by "
        "its reconstruction, by its mean, or by zero.",
        "Fidelity is how close the SAE comes to clean on the way from zero; where clean and zero "
        "coincide, as in random networks, there is nothing to be faithful to.",
        title="Cross-entropy",
    ),
    "cross_evaluation": FigureText(
        "The SAE of one variant (row) reconstructs the activations of another (column); framed "
        "cells are SAEs at home. Large: the inputs are brought to the mean norm of the SAE's own "
        "activations first. Small: as they are.",
        "An SAE of a null that does as well on trained as trained's own has found directions that "
        "training did not make; the ground shows the rescaled number.",
        title="SAEs on other variants",
    ),
    "training_curves": FigureText(
        "Explained variance on held-out tokens along the training of each SAE.",
        "A curve that still rises at its end was stopped early: compare variants only where all "
        "are flat.",
        title="Training curves",
    ),
    "training": FigureText(
        "Metrics of each SAE as it was along its training and at its end, on the same evaluation "
        "split.",
        "A gap between trained and a null that opens with training is what a metric of learned "
        "structure should show; where lines lie together all along, more training of the SAE would "
        "not tell them apart. SAEs along the way are steps of one schedule, their learning rate "
        "not yet decayed. Each samples its own latents by the usual rule: scores and entropy "
        "follow the SAE, not one set of latents.",
        title="Metrics along training",
    ),
}
