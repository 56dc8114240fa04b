"""The cells of a study: which combinations of keys a config asks for, in display order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from nullsae import paths
from nullsae.config.saes import Sae, checkpoint_name
from nullsae.config.study import Config
from nullsae.config.subjects import TrainSource
from nullsae.config.variants import GAUSSIAN, floor_name, has_model

Keys = dict[str, str]


def variant_cells(config: Config) -> Iterator[Keys]:
    """Keys of everything that has activations: subject, variant, draw."""
    for subject in config.subjects:
        for variant in config.variants:
            for draw in config.draws_of(variant):
                yield {"subject": subject, "variant": variant, "draw": str(draw)}


def model_cells(config: Config) -> Iterator[Keys]:
    """Keys of every set of weights."""
    return (keys for keys in variant_cells(config) if has_model(keys["variant"]))


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


def floor_recipes(config: Config) -> dict[str, Sae]:
    """The recipes that floors are trained by: those of `saes` whose SAEs have one.

    A pretrained SAE was trained elsewhere. A floor is for whole SAEs: none along its training.
    """
    return {
        name: sae.model_copy(update={"checkpoints": ()})
        for name, sae in config.saes.items()
        if sae.origin.has_floor and sae.pretrained is None
    }


def floor_cells(config: Config) -> Iterator[Keys]:
    """Keys of every SAE trained on Gaussian data with the moments of a variant, as `sae_cells`.

    None for what is sampled itself, nor for `trained` where `gaussian` is its floor.
    """
    if not config.evaluation.gaussian_floors:
        return
    recipes = floor_recipes(config)
    given = ("trained",) if GAUSSIAN in config.variants else ()
    for keys in variant_cells(config):
        if keys["variant"] in given or not has_model(keys["variant"]):
            continue
        own = {**keys, "variant": floor_name(keys["variant"])}
        for site in config.subjects[keys["subject"]].sites:
            for name, sae in recipes.items():
                for seed in sae.seeds:
                    yield {**own, "site": site, "sae": name, "seed": str(seed)}


def trained_together(config: Config, wildcards: Mapping[str, str]) -> list[Keys]:
    """Keys of the SAEs that one job trains: those that match the wildcards of its rule.

    Their checkpoints are by-products, which `take_checkpoint` turns into cells.
    """
    return [
        cell
        for cell in chain(sae_cells(config), floor_cells(config))
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


def matched_cells(config: Config, sae: str) -> list[dict[str, Any]]:
    """Variant, draw and seed of the SAEs of one recipe that are compared with each other."""
    return [
        {"variant": variant, "draw": draw, "seed": seed}
        for variant in config.variants
        for draw in config.draws_of(variant)
        for seed in config.saes[sae].seeds
    ]


def recipe_cells(config: Config) -> Iterator[Keys]:
    """Subject, site and recipe of every set of SAEs that holds two to compare."""
    for subject, section in config.subjects.items():
        for site in section.sites:
            for sae in config.saes:
                if len(matched_cells(config, sae)) > 1:
                    yield {"subject": subject, "site": site, "sae": sae}


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
    measured = [*saes, *floor_cells(config)]
    explained, scored = list(explainer_cells(config)), list(scorer_cells(config))
    return {
        "models": [paths.MODEL_TABLE.format(**keys) for keys in models],
        "reconstruction": [paths.RECONSTRUCTION.format(**keys) for keys in measured],
        "documents": [paths.DOCUMENTS.format(**keys) for keys in measured],
        "geometry": [paths.GEOMETRY.format(**keys) for keys in measured],
        "overlap": [paths.OVERLAP.format(**keys) for keys in recipe_cells(config)],
        "cross_evaluation": [
            paths.CROSS_EVALUATION.format(**keys)
            for keys in (saes if config.evaluation.cross_tokens else [])
        ],
        "history": [paths.HISTORY.format(**keys) for keys in measured],
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
