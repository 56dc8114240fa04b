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
    "above_gaussian_floor": FigureText(
        "1 - FVU / FVU of an SAE of the same recipe on Gaussian data with this variant's own "
        "mean and covariance; FVU is 1 - explained variance.",
        "0 means that the SAE found nothing beyond what the covariance alone allows; a null "
        "near trained has as much structure to find, learned or not.",
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
    "single_token_share": FigureText(
        "Share of the sampled latents of which one token id has most of the activation "
        "(statistics.single_token_share).",
        "Such latents are easy to explain whatever made them; a null above trained owes its "
        "scores to them.",
    ),
    "autocorrelation": FigureText(
        "Correlation of a latent's activation with itself 1 to 15 tokens later, within a "
        "document, silent tokens counting as 0; mean over these distances.",
        "Near 0 for token detectors, large for latents of passages and topics; no direction is "
        "expected.",
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
    "gain_over_lexical": FigureText(
        "AUROC minus that of token statistics (lexical), latent by latent on the same windows. ",
        "Above 0, the explanation says more than which tokens the latent fires on; what is "
        "alike in trained and nulls is no sign of training.",
    ),
    "discrimination": FigureText(
        "AUROC minus that of another latent's explanation (swapped) on the same windows.",
        "It takes away what any explanation earns by the protocol alone; near 0, an explanation "
        "says nothing of this latent in particular.",
    ),
    "abstract_share": FigureText(
        "Share of the scored latents that fire on many tokens and are explained well: entropy "
        "and AUROC above statistics.abstract_min_entropy_bits and abstract_min_auroc.",
        "What critics of the paper asked for: latents that are explained well without naming a "
        "token. A null as high as trained has them too.",
    ),
    "entropy_auroc": FigureText(
        "Each mark is one sampled latent: how many tokens it fires on against how well its "
        "explanation predicts it.",
        "If high scores stand at the left, they come from token identity; a cloud of trained above "
        "the nulls at the same entropy is what the metric should show.",
        title="Score against token entropy",
    ),
    "entropy_auroc_correlation": FigureText(
        "Spearman's rank correlation of token entropy and AUROC over scored latents.",
        "Below 0, latents of few tokens score best, as in the paper's random transformers.",
    ),
    "cross_entropy": FigureText(
        "Loss of the subject on its next token: untouched (clean), with the activation replaced by "
        "its reconstruction, by its mean, or by zero.",
        "Fidelity is how close the SAE comes to clean on the way from zero; where clean and zero "
        "coincide, as in random networks, there is nothing to be faithful to.",
        title="Cross-entropy",
    ),
    "ce_score": FigureText(
        "(zero - with SAE) / (zero - clean) of the losses above: 1 is no harm, 0 as bad as zeros.",
        "No value where zero does no clear harm: a random network predicts no better with its "
        "activations than without.",
    ),
    "geometry": FigureText(
        "Cosine of each decoder row to its nearest other row, mean over rows, beside that of as "
        "many random directions.",
        "Above random, directions come in clusters; compare variants by their distance from the "
        "floor, which falls with the width of the site.",
        title="Decoder geometry",
    ),
    "overlap": FigureText(
        "Decoder rows matched one to one with those of trained's SAE (the best assignment), "
        "mean cosine of the pairs, beside that of random directions. For trained: its SAEs of "
        "different seeds, where there are several.",
        "A null far above random shares directions with trained that training did not make; "
        "trained against itself is what could be reached at most.",
        title="Overlap with trained's dictionary",
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
