"""Scores of predictions: how well probabilities tell active windows from silent ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# From this probability on, a window counts as predicted active (F1 and balanced accuracy).
DECISION_THRESHOLD = 0.5


def classification_scores(active: Flags, probability: Floats) -> dict[str, Any]:
    """Score the predictions [n_windows] for one latent; NaN means no valid reply.

    AUROC is the chance that an active window has a larger probability than a silent one, with ties
    counting one half (Mann-Whitney). AUPRC is average precision, the sum of (R_n - R_{n-1}) P_n
    over the distinct probabilities in descending order. F1 and balanced accuracy treat a
    probability of at least 0.5 as a prediction of `active`. All equal scikit-learn's, whose import
    takes longer than the rest of this stage.

    The results are columns of the table `scores`. `n_active`, `n_silent` and `n_failed` add up to
    n_windows; scores are None if no active or no silent window is left.
    """
    valid = ~np.isnan(probability)
    truth, probability = active[valid], probability[valid]
    n_active, n_silent = int(truth.sum()), int((~truth).sum())
    result: dict[str, Any] = dict.fromkeys(("auroc", "auprc", "f1", "balanced_accuracy"))
    result |= {"n_active": n_active, "n_silent": n_silent, "n_failed": int((~valid).sum())}
    if not n_active or not n_silent:
        return result
    distinct, place = np.unique(-probability, return_inverse=True)
    hits = np.bincount(place[truth], minlength=len(distinct))
    false_alarms = np.bincount(place[~truth], minlength=len(distinct))
    hits_so_far, shown_so_far = np.cumsum(hits), np.cumsum(hits + false_alarms)
    wins = hits_so_far - hits / 2  # of active windows over each silent one with this probability
    result["auroc"] = float(false_alarms @ wins / (n_active * n_silent))
    result["auprc"] = float(hits @ (hits_so_far / shown_so_far) / n_active)

    predicted = probability >= DECISION_THRESHOLD
    true_active, true_silent = int((predicted & truth).sum()), int((~predicted & ~truth).sum())
    result["f1"] = 2 * true_active / (n_active + int(predicted.sum()))
    result["balanced_accuracy"] = (true_active / n_active + true_silent / n_silent) / 2
    return result


def window_influences(active: Flags, probability: Floats) -> dict[str, Floats]:
    """Return each window's influence on its latent's scores, [n_windows] per score; sums to 0.

    It is the derivative of a score by the window's weight, as in the infinitesimal jackknife
    (Jaeckel 1972). For AUROC it is the structural component of DeLong, DeLong & Clarke-Pearson
    (1988, Biometrics 44, 837-845) over the number of windows of its kind. There must be active and
    silent windows and no NaN.
    """
    truth, silent = active.astype(np.float64), (~active).astype(np.float64)
    n_active, n_silent = truth.sum(), silent.sum()
    at_least = (probability[None] >= probability[:, None]).astype(np.float64)  # [i, j]: p_j >= p_i
    above = 1 - at_least.T  # p_j > p_i
    # The share of silent windows below each, of active ones above each, ties counting one half.
    wins = 1 - (at_least + above) @ silent / 2 / n_silent
    losses = (at_least + above) @ truth / 2 / n_active
    auroc = truth @ wins / n_active
    found = {"auroc": truth * (wins - auroc) / n_active + silent * (losses - auroc) / n_silent}

    shown = at_least.sum(axis=1)
    precision = at_least @ truth / shown
    auprc = truth @ precision / n_active
    # A window changes the precision at each probability up to its own.
    moved = (truth / shown) @ at_least * truth - (truth * precision / shown) @ at_least
    found["auprc"] = (truth * (precision - auprc) + moved) / n_active

    predicted = (probability >= DECISION_THRESHOLD).astype(np.float64)
    hits = truth @ predicted
    n_positive = n_active + predicted.sum()
    found["f1"] = (2 * truth * predicted - 2 * hits / n_positive * (truth + predicted)) / n_positive
    right = truth * (predicted - hits / n_active) / n_active
    rejected = silent @ (1 - predicted) / n_silent
    right += silent * (1 - predicted - rejected) / n_silent
    found["balanced_accuracy"] = right / 2
    return found
