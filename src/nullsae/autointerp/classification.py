"""How well predictions tell active from silent: AUROC, AUPRC, F1, balanced accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np

from nullsae.autointerp.examples import Flags, Floats

# A window counts as predicted active from here on (F1 and balanced accuracy).
DECISION_THRESHOLD = 0.5


def classification_scores(active: Flags, probability: Floats) -> dict[str, Any]:
    """Scores of one latent's predictions, over the windows with a valid reply.

    AUROC is the chance that an active window has a larger probability than a silent one, ties
    counting one half (Mann-Whitney). AUPRC is average precision, sum of (R_n - R_{n-1}) P_n over
    the distinct probabilities from the largest down. F1 and balanced accuracy take a probability
    of at least 0.5 as a prediction of `active`. They equal scikit-learn's, whose import takes
    longer than all else in this stage.

    Args:
        active: bool [n_windows], the truth.
        probability: float [n_windows], the judge's; NaN: no valid reply.

    Returns:
        The columns of the table `scores` but `latent`. `n_active`, `n_silent` and `n_failed` add
        up to n_windows; scores are None when no active or no silent window is left.
    """
    valid = ~np.isnan(probability)
    truth, probability = active[valid], probability[valid]
    n_active, n_silent = int(truth.sum()), int((~truth).sum())
    result: dict[str, Any] = {
        "n_active": n_active,
        "n_silent": n_silent,
        "n_failed": int((~valid).sum()),
        "auroc": None,
        "auprc": None,
        "f1": None,
        "balanced_accuracy": None,
    }
    if not n_active or not n_silent:
        return result
    distinct, place = np.unique(-probability, return_inverse=True)
    hits = np.bincount(place[truth], minlength=len(distinct))
    false_alarms = np.bincount(place[~truth], minlength=len(distinct))
    hits_so_far, shown_so_far = np.cumsum(hits), np.cumsum(hits + false_alarms)
    wins = hits_so_far - hits / 2  # of active windows over each silent one of this probability
    result["auroc"] = float(false_alarms @ wins / (n_active * n_silent))
    result["auprc"] = float(hits @ (hits_so_far / shown_so_far) / n_active)

    predicted = probability >= DECISION_THRESHOLD
    true_active, true_silent = int((predicted & truth).sum()), int((~predicted & ~truth).sum())
    result["f1"] = 2 * true_active / (n_active + int(predicted.sum()))
    result["balanced_accuracy"] = (true_active / n_active + true_silent / n_silent) / 2
    return result
