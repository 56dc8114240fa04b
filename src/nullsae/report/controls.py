"""One line on each control of a study: what it preserves and what it destroys."""

from __future__ import annotations

from typing import NamedTuple

from nullsae.config.saes import Sae
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS


class Control(NamedTuple):
    """One entry of the list of controls."""

    name: str
    kind: str
    text: str
    is_variant: bool = False


def controls(config: Config) -> list[tuple[str, list[Control]]]:
    """Return title and entries of each stage that a study has, in display order."""
    variants = [(name, VARIANTS[name]) for name in config.variants]
    stages = {
        "Model and activations": [
            Control(name, variant.group, variant.describe(config.randomization), True)
            for name, variant in variants
        ],
        "Dictionary": [
            Control(name, "pretrained" if sae.pretrained else sae.dictionary, _text(config, sae))
            for name, sae in config.saes.items()
        ],
        "Explanation": [Control(name, e.name, e.text) for name, e in config.explainers.items()],
        "Score": [Control(name, s.name, s.text) for name, s in config.scorers.items()],
    }
    return [(title, entries) for title, entries in stages.items() if entries]


def _text(config: Config, sae: Sae) -> str:
    """Describe where the latents of a recipe come from."""
    if sae.pretrained is None:
        return sae.origin.text()
    if sae.output_site is not None:
        return (
            f"A transcoder made elsewhere ({sae.pretrained}), for trained: it reads "
            f"{sae.input_site} and replaces {sae.output_site} of the same block."
        )
    if sae.made_elsewhere("any"):
        return f"Made elsewhere ({sae.pretrained}) and used for all variants."
    n_tokens = config.activations.sae_train_tokens // sae.batch_tokens * sae.batch_tokens
    return (
        f"Made elsewhere ({sae.pretrained}) and used for trained; SAEs of the same width and L0 "
        f"are trained here for the other variants, on {sae.epochs * n_tokens:,} tokens."
    )
