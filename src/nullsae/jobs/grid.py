"""The cells of a study: which combinations of keys a config asks for, in display order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from nullsae import paths
from nullsae.config.saes import Sae, checkpoint_name, recipe_name
from nullsae.config.study import Config
from nullsae.config.subjects import TrainSource
from nullsae.config.variants import GAUSSIAN, VARIANTS, floor_name, has_model

Keys = dict[str, str]
MODEL = ("subject", "variant", "draw")


def of_model(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the model among the keys of something made from it."""
    return {name: keys[name] for name in MODEL}


def variant_cells(config: Config) -> Iterator[Keys]:
    """Yield the keys of everything with activations: subject, variant, draw."""
    for subject in config.subjects:
        for variant in config.variants:
            for draw in config.draws_of(variant, subject):
                yield {"subject": subject, "variant": variant, "draw": str(draw)}


def model_cells(config: Config) -> Iterator[Keys]:
    """Return the keys of every set of weights."""
    return (keys for keys in variant_cells(config) if has_model(keys["variant"]))


def sae_names(config: Config) -> dict[str, str]:
    """Map the names of all SAEs to the names of their recipes.

    A recipe's checkpoints come before its finished SAE, which has the recipe's own name.
    """
    found: dict[str, str] = {}
    for recipe, sae in config.saes.items():
        found |= {checkpoint_name(recipe, share): recipe for share in sae.checkpoints}
        found[recipe] = recipe
    return found


def sae_cells(config: Config) -> Iterator[Keys]:
    """Yield the keys of every SAE, including checkpoints: the model's, and site, sae, seed."""
    seeds = {name: config.saes[recipe].seeds for name, recipe in sae_names(config).items()}
    for keys in variant_cells(config):
        yield from _saes_of(config, keys, seeds)


def captured_sites(config: Config, subject: str) -> tuple[str, ...]:
    """Return the sites of a subject where SAEs are made, and those that transcoders write."""
    sites, recipes = config.subjects[subject].sites, config.saes.values()
    written = (
        recipe.output_of(site)
        for site in sites
        for recipe in recipes
        if recipe.is_made(site, "trained")
    )
    return tuple(dict.fromkeys((*sites, *written)))


def _saes_of(config: Config, keys: Keys, seeds: Mapping[str, Iterable[int]]) -> Iterator[Keys]:
    for site in config.subjects[keys["subject"]].sites:
        for name, given in seeds.items():
            if not config.saes[recipe_name(name)].is_made(site, keys["variant"]):
                continue
            for seed in given:
                yield {**keys, "site": site, "sae": name, "seed": str(seed)}


def floor_recipes(config: Config) -> dict[str, Sae]:
    """Return the recipes that floors are trained by: those in `saes` with a floor.

    Pretrained SAEs have none, as they were trained elsewhere. Floors have no checkpoints.
    """
    return {
        name: sae.model_copy(update={"checkpoints": ()})
        for name, sae in config.saes.items()
        if sae.origin.has_floor and sae.pretrained is None
    }


def floor_cells(config: Config) -> Iterator[Keys]:
    """Yield keys, as `sae_cells`, of each SAE trained on Gaussian data with a variant's moments.

    Sampled variants have none, nor has `trained` if the variant `gaussian` is its floor.
    """
    if not config.evaluation.gaussian_floors:
        return
    seeds = {name: sae.seeds for name, sae in floor_recipes(config).items()}
    given = ("trained",) if GAUSSIAN in config.variants else ()
    for keys in variant_cells(config):
        if keys["variant"] in given or not has_model(keys["variant"]):
            continue
        yield from _saes_of(config, {**keys, "variant": floor_name(keys["variant"])}, seeds)


def evaluated_with(config: Config, wildcards: Mapping[str, str]) -> list[Keys]:
    """Return the keys of the SAEs that one job evaluates: those of a model, and its floors."""
    own = of_model(wildcards)
    of_floor = own | {"variant": floor_name(own["variant"])}
    found = chain(sae_cells(config), floor_cells(config))
    return [c for c in found if own.items() <= c.items() or of_floor.items() <= c.items()]


def trained_together(config: Config, wildcards: Mapping[str, str]) -> list[Keys]:
    """Return the keys of the SAEs that one job trains: those that match its rule's wildcards.

    Checkpoints are by-products, which `take_checkpoint` turns into cells. SAEs made from another
    one have their own job, `derive_sae`.
    """
    made = [name for name in config.saes if name not in derived_recipes(config)]
    return [
        cell
        for cell in chain(sae_cells(config), floor_cells(config))
        if cell["sae"] in made and wildcards.items() <= cell.items()
    ]


def derived_recipes(config: Config) -> dict[str, str]:
    """Map the recipes whose SAEs are made from another one to the name of that one."""
    sources = {name: sae.origin.source for name, sae in config.saes.items()}
    return {name: source for name, source in sources.items() if source is not None}


def source_cell(config: Config, keys: Mapping[str, str]) -> Keys:
    """Return the keys of the SAE that one is made from: of its own seed, else the first seed."""
    origin = config.saes[keys["sae"]].origin
    assert origin.source is not None
    seeds = [str(seed) for seed in config.saes[origin.source].seeds]
    seed = keys["seed"] if keys["seed"] in seeds else seeds[0]
    return {**origin.source_keys(keys), "site": keys["site"], "sae": origin.source, "seed": seed}


def cross_cells(config: Config, wildcards: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the model keys of the activations that an SAE is cross-evaluated on, in display order.

    They are each variant's draw 0, but the SAE's own draw of its own variant.
    """
    subject, own, draw = wildcards["subject"], wildcards["variant"], int(wildcards["draw"])
    return [
        {"subject": subject, "variant": variant, "draw": draw if variant == own else 0}
        for variant in config.variants
        if VARIANTS[variant].draws(config.subjects[subject].source, 1)
    ]


def matched_cells(config: Config, subject: str, site: str, sae: str) -> list[dict[str, Any]]:
    """Return variant, draw and seed of a recipe's SAEs that are compared with each other."""
    recipe = config.saes[sae]
    return [
        {"variant": variant, "draw": draw, "seed": seed}
        for variant in config.variants
        if recipe.is_made(site, variant)
        for draw in config.draws_of(variant, subject)
        for seed in recipe.seeds
    ]


def recipe_cells(config: Config) -> Iterator[Keys]:
    """Yield subject, site and recipe of every set of at least two SAEs to compare."""
    for subject, section in config.subjects.items():
        for site in section.sites:
            for sae in config.saes:
                if len(matched_cells(config, subject, site, sae)) > 1:
                    yield {"subject": subject, "site": site, "sae": sae}


def explainer_cells(config: Config) -> Iterator[Keys]:
    """Yield the keys of every set of explanations."""
    for keys in sae_cells(config):
        for explainer in config.explainers:
            yield {**keys, "explainer": explainer}


def scorer_cells(config: Config) -> Iterator[Keys]:
    """Yield the keys of every set of scores."""
    for keys in sae_cells(config):
        for explainer, scorer in config.scored_pairs():
            yield {**keys, "explainer": explainer, "scorer": scorer}


def cell_files(config: Config) -> dict[str, list[str]]:
    """Return the files of a finished study, by table of `tables.cells.CELL_TABLES`."""
    saes, scored = list(sae_cells(config)), list(scorer_cells(config))
    measured = [*saes, *floor_cells(config)]
    crossed = saes if config.evaluation.cross_tokens else []
    patterns: dict[str, tuple[str, Iterable[Keys]]] = {
        "models": (paths.MODEL_TABLE, model_cells(config)),
        "reconstruction": (paths.RECONSTRUCTION, measured),
        "documents": (paths.DOCUMENTS, measured),
        "geometry": (paths.GEOMETRY, measured),
        "overlap": (paths.OVERLAP, recipe_cells(config)),
        "cross_evaluation": (paths.CROSS_EVALUATION, crossed),
        "history": (paths.HISTORY, measured),
        "latents": (paths.LATENTS, saes),
        "coverage": (paths.COVERAGE, saes),
        "windows": (paths.WINDOWS, saes),
        "explanations": (paths.EXPLANATIONS, explainer_cells(config)),
        "predictions": (paths.PREDICTIONS, scored),
        "scores": (paths.SCORES, scored),
    }
    return {
        table: [pattern.format(**keys) for keys in cells]
        for table, (pattern, cells) in patterns.items()
    }


def trained_here(config: Config) -> list[str]:
    """Return the names of the subjects that the workflow trains itself."""
    return [n for n, subject in config.subjects.items() if isinstance(subject.source, TrainSource)]
