"""One line on each control of a study: what it keeps of the real thing, and what it destroys."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae.config.explainers import Explainer, OpenAIExplainer, SwappedExplainer
from nullsae.config.saes import Sae
from nullsae.config.scorers import (
    DetectionScorer,
    FuzzingScorer,
    IntruderScorer,
    LikelihoodScorer,
    Scorer,
)
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS


@dataclass(frozen=True)
class Control:
    """One entry of the list of controls."""

    name: str
    kind: str
    text: str
    is_variant: bool = False


def controls(config: Config) -> list[tuple[str, list[Control]]]:
    """Title and entries of each stage of the chain that a study has, in display order."""
    variants = [(name, VARIANTS[name]) for name in config.variants]
    stages = [
        (
            "Model and activations",
            [
                Control(name, variant.group, variant.describe(config.randomization), True)
                for name, variant in variants
            ],
        ),
        (
            "Dictionary",
            [
                Control(name, "pretrained" if sae.pretrained else sae.dictionary, sae_text(sae))
                for name, sae in config.saes.items()
            ],
        ),
        (
            "Explanation",
            [
                Control(name, explainer.kind, explainer_text(explainer))
                for name, explainer in config.explainers.items()
            ],
        ),
        (
            "Score",
            [Control(name, s.kind, scorer_text(s)) for name, s in config.scorers.items()],
        ),
    ]
    return [(title, entries) for title, entries in stages if entries]


def sae_text(sae: Sae) -> str:
    """Where the latents of a recipe come from."""
    if sae.pretrained is not None:
        return (
            f"Made elsewhere ({sae.pretrained}) and used for trained; the nulls' SAEs have the "
            f"same width and are trained here."
        )
    return sae.origin.text()


def explainer_text(explainer: Explainer) -> str:
    """What an explanation rests on."""
    if isinstance(explainer, SwappedExplainer):
        return (
            f"The floor: each latent is judged by the explanation that {explainer.of} wrote for "
            f"another latent of the same SAE."
        )
    if isinstance(explainer, OpenAIExplainer):
        return f"{explainer.model} is shown the latent's active windows and says what they share."
    if explainer.context == "bigram":
        return (
            "No language model: the judge knows how often the latent fires on each token after its "
            "predecessor."
        )
    return "No language model: the judge knows only how often the latent fires on each token."


def scorer_text(scorer: Scorer) -> str:
    """What the judge is asked."""
    if isinstance(scorer, IntruderScorer):
        return (
            f"{scorer.judge.model} is shown {scorer.active_per_task} active windows and one other, "
            f"and says which does not belong; no explanation is used."
        )
    if isinstance(scorer, LikelihoodScorer):
        which = "the marked tokens" if scorer.form == "fuzzing" else "a window"
        text = f"How much likelier the explanation makes {which} to a language model."
    elif isinstance(scorer, FuzzingScorer):
        text = "The judge says whether the marked tokens are those that the latent fires on."
    else:
        assert isinstance(scorer, DetectionScorer)
        text = "The judge says whether the latent fires in a window."
    return text + _NEGATIVES[scorer.negatives]


_NEGATIVES = {
    "random": "",
    "co_occurring": " Negatives: windows in which latents fire that often fire with this one.",
    "nearest": " Negatives: windows of much the same tokens in which the latent is silent.",
    "misplaced": " Negatives: the same windows with marks on tokens where the latent is silent.",
}
