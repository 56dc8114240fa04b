"""Which figures a study has, from its config alone. Light: the Snakefile imports it."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae.config.study import Config
from nullsae.statistics.baselines import study_metrics
from nullsae.statistics.metrics import METRICS

SCORED = ("entropy_auroc",)
"""Figures that exist only where explanations are scored, beside those of metrics."""
CROSS = ("cross_evaluation",)
"""Figures that exist only where SAEs are evaluated on other variants."""
ALONG = ("training",)
"""Figures that exist only where some SAE has checkpoints."""


@dataclass(frozen=True)
class Group:
    """A section of the report and the kinds of figure in it."""

    key: str
    title: str
    kinds: tuple[str, ...]


GROUPS: tuple[Group, ...] = (
    Group(
        "reconstruction",
        "Reconstruction",
        ("explained_variance", "above_gaussian_floor", "cosine", "l1"),
    ),
    Group(
        "tokens",
        "Token identity and entropy",
        (
            *("token_lookup", "token_entropy_bits", "explain_token_entropy_bits"),
            *("peak_token_share", "single_token_share", "autocorrelation"),
        ),
    ),
    Group(
        "interpretability",
        "Automated interpretability",
        (
            *("auroc", "auprc", "f1", "balanced_accuracy"),
            *("gain_over_lexical", "discrimination"),
            *("entropy_auroc", "entropy_auroc_correlation", "abstract_share"),
        ),
    ),
    Group("fidelity", "Fidelity", ("cross_entropy", "ce_score")),
    Group("dictionaries", "Dictionaries", ("geometry", "overlap")),
    Group("transfer", "Transfer between variants", ("cross_evaluation",)),
    Group("training", "Training of the SAEs", ("training_curves", "training")),
)


def metric_group(metric: str) -> str:
    """Title of the section that a metric belongs to."""
    return next(group.title for group in GROUPS if metric in group.kinds)


def figure_kinds(config: Config) -> list[str]:
    """Kinds of figure that each subject has, in display order."""
    there = study_metrics(config, METRICS)
    left_out = tuple(metric.name for metric in METRICS if metric.name not in there)
    if not config.scored_pairs():
        left_out += SCORED
    if config.evaluation.cross_tokens is None:
        left_out += CROSS
    if not any(sae.checkpoints for sae in config.saes.values()):
        left_out += ALONG
    return [kind for group in GROUPS for kind in group.kinds if kind not in left_out]


def figure_name(subject: str, kind: str) -> str:
    """Name of one figure, without its format."""
    return f"{subject}.{kind}"


def figure_names(config: Config) -> list[str]:
    """Names of all figures of a study, as they stand in `paths.FIGURE`, in display order."""
    kinds = figure_kinds(config)
    return [figure_name(subject, kind) for subject in config.subjects for kind in kinds]


def shown_explainer(config: Config) -> str | None:
    """Whose explanations the page shows: those that a language model wrote, else the first ones."""
    written = [name for name, explainer in config.explainers.items() if explainer.shown_first]
    return next(iter([*written, *config.explainers]), None)


def entropy_pair(config: Config) -> tuple[str, str] | None:
    """The explainer and scorer of the figure `entropy_auroc`.

    A detection scorer goes before others, because fuzzing marks tokens and so leans on their
    identity. None where nothing is scored.
    """
    explainer = shown_explainer(config)
    scorers = [scorer for name, scorer in config.scored_pairs() if name == explainer]
    if explainer is None or not scorers:
        return None
    first = [name for name in scorers if config.scorers[name].shown_first]
    return explainer, (first or scorers)[0]


def _complete() -> bool:
    return {metric.name for metric in METRICS} <= {kind for g in GROUPS for kind in g.kinds}


if not _complete():  # a metric added to statistics.metrics needs a place in the report
    raise AssertionError("a metric of statistics.metrics is in no group of report.names")
