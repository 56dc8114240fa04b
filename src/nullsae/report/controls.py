"""One line on each control of a study: what it preserves and what it destroys."""

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

VARIANT_KINDS = {
    "the real thing": ("trained",),
    "initial weights": ("step0", "fresh_init"),
    "redrawn weights": ("rerandomized", "rerandomized_keep_embeddings", "cascade"),
    "rearranged weights": ("permuted_weights", "spectrum_matched"),
    "embeddings": ("permuted_embeddings", "rotated_embeddings", "noise_embeddings"),
    "activations": ("gaussian",),
}
_VARIANTS = {
    "trained": "The subject as it was trained: what every null is compared with.",
    "step0": "The subject's own weights before the first training step.",
    "fresh_init": "New weights from the architecture's own initializer.",
    "rerandomized": "Each tensor redrawn from a normal distribution with its own mean and "
    "variance; all else is lost. {norms}",
    "rerandomized_keep_embeddings": "Each tensor redrawn as in rerandomized, but for the input and "
    "output embeddings, which stay as trained. {norms}",
    "cascade": "The first {kept} as trained, the blocks above redrawn as in rerandomized. {norms}",
    "permuted_weights": "The entries of each tensor change places: their exact distribution stays, "
    "their arrangement is lost. {norms}",
    "spectrum_matched": "Each matrix keeps its singular values; its singular vectors are random. "
    "{norms}",
    "permuted_embeddings": "All weights as trained, but tokens exchange their embeddings.",
    "rotated_embeddings": "All weights as trained, but the embeddings are turned by one random "
    "rotation: lengths and angles among them stay.",
    "noise_embeddings": "All weights as trained, but each occurrence of a token has an embedding "
    "of fresh noise (standard deviation {noise}): no token has one of its own.",
    "gaussian": "No model at all: activations drawn from a normal distribution with the mean and "
    "covariance of trained's at the site.",
}
_DICTIONARIES = {
    "learned": "Encoder and decoder are trained.",
    "frozen_decoder": "The decoder stays at its random start; the encoder is trained.",
    "soft_frozen_decoder": "Both are trained, but each decoder row stays near its random start "
    "(cosine at least {cosine}).",
    "frozen_encoder": "The encoder stays at its random start; the decoder is trained.",
    "token_lookup": "One latent per token id, whose direction is that token's mean activation: it "
    "reads the token and not the activation.",
    "pca": "Principal components of the activations, plus and minus; nothing is trained.",
    "identity": "The neuron basis: each dimension, plus and minus, is a latent; nothing is "
    "trained.",
}


@dataclass(frozen=True)
class Control:
    """One entry of the list of controls."""

    name: str
    kind: str
    text: str
    is_variant: bool = False


def controls(config: Config) -> list[tuple[str, list[Control]]]:
    """Title and entries of each stage that a study has, in display order."""
    kinds = {name: kind for kind, names in VARIANT_KINDS.items() for name in names}
    stages = [
        (
            "Model and activations",
            [Control(v, kinds[v], variant_text(v, config), True) for v in config.variants],
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


def variant_text(variant: str, config: Config) -> str:
    """What a variant keeps and loses, under this config."""
    settings = config.randomization
    first = settings.first_random_block
    keeps = settings.norm_parameters == "keep"
    return (
        _VARIANTS[variant]
        .format(
            norms="Normalization layers are kept." if keeps else "",
            kept="half of the blocks" if first is None else f"{first} blocks",
            noise=f"{settings.embedding_noise_std:g}",
        )
        .strip()
    )


def sae_text(sae: Sae) -> str:
    """Where the latents of a recipe come from."""
    if sae.pretrained is not None:
        return (
            f"Made elsewhere ({sae.pretrained}) and used for trained; the nulls' SAEs have the "
            f"same width and are trained here."
        )
    return _DICTIONARIES[sae.dictionary].format(cosine=f"{sae.min_decoder_cosine:g}")


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
