"""The explainers that others are compared with. Light, because the Snakefile imports it."""

from __future__ import annotations

from nullsae.config.metrics import Metric, all_metrics
from nullsae.config.study import NO_EXPLAINER, Config
from nullsae.config.variants import GAUSSIAN


def lexical_baseline(config: Config) -> str | None:
    """Return the explainer that others are compared with: the first that counts single tokens."""
    return next((name for name, e in config.explainers.items() if e.is_baseline), None)


def swapped_baselines(config: Config) -> dict[str, str]:
    """Map each explainer to the first one that swaps its explanations, if any."""
    found: dict[str, str] = {}
    for name, explainer in config.explainers.items():
        if explainer.exchanges is not None:
            found.setdefault(explainer.exchanges, name)
    return found


def explanation_nulls(config: Config, explainer: str) -> list[str]:
    """List the nulls of an explainer: its swapped one, and those that count tokens."""
    own = config.explainers[explainer]
    if own.exchanges is not None:
        return []
    swapped = swapped_baselines(config).get(explainer)
    found = [] if swapped is None else [swapped]
    if own.is_baseline:
        return found
    side = config.side(explainer)
    lexical = [name for name, e in config.explainers.items() if e.is_baseline]
    return found + [name for name in lexical if config.side(name) == side]


def no_gain(config: Config, explainer: str) -> str | None:
    """Return why an explainer has no `gain_over_lexical`; None if it has one."""
    lexical = lexical_baseline(config)
    if explainer == NO_EXPLAINER or lexical is None:
        return "no lexical explanations"
    if config.side(explainer) != config.side(lexical):
        return "explanations of the output side"
    if explainer == lexical:
        return "the lexical explainer itself"
    return "swapped explanations" if is_swapped(config, explainer) else None


def no_discrimination(config: Config, explainer: str) -> str | None:
    """Return why an explainer has no `discrimination`; None if it has one.

    `NO_EXPLAINER` has one if some scorer brings its own placebo.
    """
    if explainer == NO_EXPLAINER and any(s.has_placebo for s in config.scorers.values()):
        return None
    if explainer in swapped_baselines(config):
        return None
    return f"{'' if is_swapped(config, explainer) else 'no '}swapped explanations"


def applies(metric: Metric, config: Config, explainer: str | None) -> bool:
    """Whether a metric is defined for comparisons with this explainer, or without one."""
    if metric.is_scored != (explainer is not None):
        return False
    if metric.form == "relative":
        return config.evaluation.gaussian_floors or GAUSSIAN in config.variants
    if explainer is None:
        return True
    reasons = {"gain_over_lexical": no_gain, "discrimination": no_discrimination}
    if any(reasons[c](config, explainer) is not None for c in metric.columns if c in reasons):
        return False
    # The score of another latent's explanation says nothing about the latent itself.
    return metric.table == "scores" or not is_swapped(config, explainer)


def is_swapped(config: Config, explainer: str) -> bool:
    """Whether an explainer assigns latents the explanations of others, as a placebo."""
    return explainer != NO_EXPLAINER and config.explainers[explainer].exchanges is not None


def study_metrics(config: Config) -> list[str]:
    """List the metrics that some comparison of a study has, in display order."""
    explainers = [None, *dict(config.scored_pairs())]
    return [m.name for m in all_metrics() if any(applies(m, config, e) for e in explainers)]
