"""Which figures a study has, from its config alone. Light, because the Snakefile imports it."""

from __future__ import annotations

from typing import NamedTuple

from nullsae.config.metrics import METRICS, SECTIONS, Metric
from nullsae.config.study import Config
from nullsae.report.kinds import FIGURES, FigureKind
from nullsae.statistics.baselines import study_metrics


class Group(NamedTuple):
    """A section of the report."""

    key: str
    title: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of figure in it, in display order."""
        things: list[type[Metric | FigureKind]] = [*METRICS.values(), *FIGURES.values()]
        own = [thing for thing in things if thing.section == self.key]
        return tuple(thing.name for thing in sorted(own, key=_place))


GROUPS = (
    Group("answer", "Answer"),
    *(Group(key, title) for key, title in SECTIONS.items()),
)
"""In display order; the first is shown with the answer's sentences and has no metrics."""


def metric_group(metric: str) -> str:
    """Return the title of the section that a metric belongs to."""
    return SECTIONS[METRICS[metric].section]


def figure_kinds(config: Config) -> list[str]:
    """List the kinds of figure that each subject has, in display order."""
    there = {*study_metrics(config)}
    there |= {name for name, figure in FIGURES.items() if figure().is_there(config)}
    return [kind for group in GROUPS for kind in group.kinds if kind in there]


def figure_name(subject: str, kind: str) -> str:
    """Return the name of one figure, without its format."""
    return f"{subject}.{kind}"


def figure_names(config: Config) -> list[str]:
    """List the names of all figures of a study, as in `paths.FIGURE`, in display order."""
    return [figure_name(s, kind) for s in config.subjects for kind in figure_kinds(config)]


def shown_explainer(config: Config) -> str | None:
    """Return the explainer to show: the first that uses a language model, else the first one."""
    written = [name for name, explainer in config.explainers.items() if explainer.shown_first]
    return next(iter([*written, *config.explainers]), None)


def entropy_pair(config: Config) -> tuple[str, str] | None:
    """Return the explainer and scorer of the figure `entropy_auroc`; None if nothing is scored.

    A detection scorer is preferred, because fuzzing marks tokens and so depends on their identity.
    """
    explainer = shown_explainer(config)
    scorers = [scorer for name, scorer in config.scored_pairs() if name == explainer]
    if explainer is None or not scorers:
        return None
    first = [name for name in scorers if config.scorers[name].shown_first]
    return explainer, (first or scorers)[0]


def _place(thing: type[Metric | FigureKind]) -> int:
    if thing.place is None and issubclass(thing, Metric):
        return thing.position
    return thing.place or 0
