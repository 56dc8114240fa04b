"""Which figures a study has, from its config alone. Light: the Snakefile imports it."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae.config import Config
from nullsae.statistics.metrics import METRICS

SCORED = ("auroc", "auprc", "f1", "balanced_accuracy", "entropy_auroc")
"""Figures that exist only where explanations are scored."""


@dataclass(frozen=True)
class Group:
    """A section of the report and the kinds of figure in it."""

    key: str
    title: str
    kinds: tuple[str, ...]


GROUPS: tuple[Group, ...] = (
    Group("reconstruction", "Reconstruction", ("explained_variance", "cosine", "l1")),
    Group(
        "tokens",
        "Token identity and entropy",
        ("token_lookup", "token_entropy_bits", "explain_token_entropy_bits", "peak_token_share"),
    ),
    Group(
        "interpretability",
        "Automated interpretability",
        ("auroc", "auprc", "f1", "balanced_accuracy", "entropy_auroc"),
    ),
    Group("fidelity", "Fidelity", ("cross_entropy",)),
    Group("training", "Training of the SAEs", ("training_curves",)),
)


def metric_group(metric: str) -> str:
    """Title of the section that a metric belongs to."""
    return next(group.title for group in GROUPS if metric in group.kinds)


def figure_kinds(config: Config) -> list[str]:
    """Kinds of figure that each subject has, in display order."""
    scored = bool(config.explainers and config.scorers)
    return [kind for group in GROUPS for kind in group.kinds if scored or kind not in SCORED]


def figure_name(subject: str, kind: str) -> str:
    """Name of one figure, without its format."""
    return f"{subject}.{kind}"


def figure_names(config: Config) -> list[str]:
    """Names of all figures of a study, as they stand in `paths.FIGURE`, in display order."""
    kinds = figure_kinds(config)
    return [figure_name(subject, kind) for subject in config.subjects for kind in kinds]


def entropy_pair(config: Config) -> tuple[str, str] | None:
    """The explainer and scorer of the figure `entropy_auroc`: the first of each.

    A detection scorer goes before others, because fuzzing marks tokens and so leans on their
    identity. None where nothing is scored.
    """
    if not (config.explainers and config.scorers):
        return None
    detection = [name for name, scorer in config.scorers.items() if scorer.kind == "detection"]
    return next(iter(config.explainers)), (detection or list(config.scorers))[0]


def _complete() -> bool:
    return {metric.name for metric in METRICS} <= {kind for g in GROUPS for kind in g.kinds}


if not _complete():  # a metric added to statistics.metrics needs a place in the report
    raise AssertionError("a metric of statistics.metrics is in no group of report.names")
