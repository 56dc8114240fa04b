"""The cells of a study: which combinations of keys a config asks for, in display order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nullsae import paths
from nullsae.config import Config
from nullsae.inputs import TrainSource
from nullsae.recipes import checkpoint_name

Keys = dict[str, str]


def variant_cells(config: Config) -> Iterator[Keys]:
    """Keys of everything that has activations: subject, variant, draw."""
    for subject in config.subjects:
        for variant in config.variants:
            for draw in config.draws_of(variant):
                yield {"subject": subject, "variant": variant, "draw": str(draw)}


def model_cells(config: Config) -> Iterator[Keys]:
    """Keys of every set of weights: `gaussian` has activations only."""
    return (keys for keys in variant_cells(config) if keys["variant"] != "gaussian")


def sae_names(config: Config) -> dict[str, str]:
    """Names of all SAEs to the names of their recipes.

    A recipe's checkpoints stand before the SAE at the end of its training, whose name is the
    recipe's own.
    """
    found: dict[str, str] = {}
    for recipe, sae in config.saes.items():
        found |= {checkpoint_name(recipe, share): recipe for share in sae.checkpoints}
        found[recipe] = recipe
    return found


def sae_cells(config: Config) -> Iterator[Keys]:
    """Keys of every SAE, checkpoints included: those of the activations, and site, sae, seed."""
    names = sae_names(config)
    for keys in variant_cells(config):
        for site in config.subjects[keys["subject"]].sites:
            for name, recipe in names.items():
                for seed in config.saes[recipe].seeds:
                    yield {**keys, "site": site, "sae": name, "seed": str(seed)}


def trained_together(config: Config, wildcards: Mapping[str, str]) -> list[Keys]:
    """Keys of the SAEs that one job trains: those that match the wildcards of its rule.

    Their checkpoints are by-products, which `take_checkpoint` turns into cells.
    """
    return [
        cell
        for cell in sae_cells(config)
        if cell["sae"] in config.saes and wildcards.items() <= cell.items()
    ]


def cross_cells(config: Config, wildcards: Mapping[str, str]) -> list[dict[str, Any]]:
    """Model keys of the activations that an SAE is cross-evaluated on, in display order.

    Each variant's draw 0, but for the SAE's own variant, whose draw is the SAE's own.
    """
    own, draw = wildcards["variant"], int(wildcards["draw"])
    return [
        {
            "subject": wildcards["subject"],
            "variant": variant,
            "draw": draw if variant == own else 0,
        }
        for variant in config.variants
    ]


def explainer_cells(config: Config) -> Iterator[Keys]:
    """Keys of every set of explanations."""
    for keys in sae_cells(config):
        for explainer in config.explainers:
            yield {**keys, "explainer": explainer}


def scorer_cells(config: Config) -> Iterator[Keys]:
    """Keys of every set of scores."""
    for keys in sae_cells(config):
        for explainer, scorer in config.scored_pairs():
            yield {**keys, "explainer": explainer, "scorer": scorer}


def cell_files(config: Config) -> dict[str, list[str]]:
    """Per table of `schemas.cells.CELL_TABLES`, the files that a finished study consists of."""
    models, saes = list(model_cells(config)), list(sae_cells(config))
    explained, scored = list(explainer_cells(config)), list(scorer_cells(config))
    return {
        "models": [paths.MODEL_TABLE.format(**keys) for keys in models],
        "reconstruction": [paths.RECONSTRUCTION.format(**keys) for keys in saes],
        "documents": [paths.DOCUMENTS.format(**keys) for keys in saes],
        "cross_evaluation": [
            paths.CROSS_EVALUATION.format(**keys)
            for keys in (saes if config.evaluation.cross_tokens else [])
        ],
        "history": [paths.HISTORY.format(**keys) for keys in saes],
        "latents": [paths.LATENTS.format(**keys) for keys in saes],
        "coverage": [paths.COVERAGE.format(**keys) for keys in saes],
        "windows": [paths.WINDOWS.format(**keys) for keys in saes],
        "explanations": [paths.EXPLANATIONS.format(**keys) for keys in explained],
        "predictions": [paths.PREDICTIONS.format(**keys) for keys in scored],
        "scores": [paths.SCORES.format(**keys) for keys in scored],
    }


def trained_here(config: Config) -> list[str]:
    """Names of the subjects that the workflow trains itself."""
    return [n for n, subject in config.subjects.items() if isinstance(subject.source, TrainSource)]
