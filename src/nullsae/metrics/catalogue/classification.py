"""Scores of a judge that uses an explanation to tell active windows from silent ones."""

from __future__ import annotations

from nullsae.config.metrics import Metric

_SCORE = "Averaged over latents, each judged on its own windows; failed replies are left out."


class _OfScores(Metric):
    """A mean over scored latents."""

    table, section = "scores", "interpretability"
    values = "[0, 1]"


class Auroc(_OfScores):
    """Area under the receiver operating characteristic."""

    name, position = "auroc", 110
    title = "AUROC"
    columns = ("auroc",)
    chance = 0.5
    formula = "P(judge ranks an active window above a silent one), ties ½"
    definition = (
        "Probability that the judge, given the explanation, ranks an active window above a silent "
        "one. " + _SCORE
    )
    reading = (
        "Explanations help if the score is above 0.5. It reflects training only if trained scores "
        "above the nulls."
    )
    is_usual = True
    along_training = 2


class Auprc(_OfScores):
    """Area under the precision-recall curve."""

    name, position = "auprc", 120
    title = "AUPRC"
    columns = ("auprc",)
    floor, floor_is = 0.5, "the share of active windows"
    formula = "Σ (R_n - R_{n-1}) P_n over the distinct probabilities"
    definition = "Area under the precision-recall curve of the judge's probabilities. " + _SCORE
    reading = "Its floor is the share of active windows, not 0; compare it with the nulls."


class F1(_OfScores):
    """Harmonic mean of precision and recall."""

    name, position = "f1", 130
    title = "F1"
    columns = ("f1",)
    floor, floor_is = 0.5, 'a coin flip; "always yes" gets ⅔ if half of the windows are active'
    formula = "2 TP / (2 TP + FP + FN) at probability ≥ 0.5"
    definition = "Harmonic mean of precision and recall of the judge's yes/no answers. " + _SCORE
    reading = "A judge that always says yes already scores high if half of the windows are active."


class BalancedAccuracy(_OfScores):
    """Mean of the true positive and true negative rates."""

    name, position = "balanced_accuracy", 140
    title = "Balanced accuracy"
    columns = ("balanced_accuracy",)
    chance = 0.5
    formula = "mean of TPR and TNR at ≥ 0.5"
    definition = (
        "Mean of the shares of active and silent windows that the judge gets right. " + _SCORE
    )
    reading = "Explanations help if the score is above 0.5."
