"""Jobs of workflow/rules/sae.smk and checkpoints.smk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from nullsae.config.compute import Compute, Precision
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.made_on import UsedOn, used_on
from nullsae.config.model_files import is_local
from nullsae.config.pretrained import FromObject, Pretrained, pretrained_sae_path
from nullsae.config.saes import ARCHITECTURES, Sae
from nullsae.config.section import FloatType, Section
from nullsae.config.study import Config
from nullsae.config.variants import is_floor
from nullsae.core.files import content_key
from nullsae.jobs.accepted import in_use
from nullsae.jobs.activations import fitted_key, key_of
from nullsae.jobs.code_hash import files_in, thing_files, with_siblings
from nullsae.jobs.file_stamps import folder_files, named_file, stamps
from nullsae.jobs.grid import floor_recipes, trained_together
from nullsae.jobs.keys import CellKeys, ModelKeys, SaeKeys
from nullsae.jobs.rules import Wildcards, rule

# Code that only makes dictionaries from other SAEs.
DERIVING = ("sae/derivation.py", "sae/derive_sae.py")


class Aim(Section):
    """The pretrained SAE whose L0 on `trained` an SAE aims at."""

    sae: str
    """Its key in `saes`."""
    seed: NonNegativeInt
    pretrained: Pretrained
    heldout_tokens: PositiveInt
    """Tokens of `eval` to measure its L0 on."""
    key: str
    """The key in the `cfg.json` of its cell."""


class SaeCell(SaeKeys):
    """One SAE of a job, without the keys that all of its SAEs share."""

    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for a pretrained SAE in a local folder."""
    used_on: UsedOn | None = None
    """What a pretrained SAE is fed, to compare with what it was made on."""
    code: str = ""
    """Hash of the code that it counts as made by; by default that of the current code."""
    aim: Aim | None = None
    """If given, the SAE whose L0 it aims at."""


class StreamParams(Section):
    """How activations that are not kept are recomputed."""

    max_tokens: PositiveInt
    """Tokens of `sae_train` to train on."""
    shard_tokens: PositiveInt
    dtype: FloatType
    batch_contexts: PositiveInt
    fitted_activations_key: str = ""
    """If given, activations to fit to are refused if their key differs (`gaussian`, floors)."""


class TrainSaeParams(Section):
    """What `nullsae train_sae` takes."""

    seed: NonNegativeInt
    keys: ModelKeys
    saes: Annotated[dict[str, Sae], Field(min_length=1)]
    """Recipes by name, each once even if several SAEs are made by it."""
    cells: Annotated[tuple[SaeCell, ...], Field(min_length=1)]
    """SAEs to make, all trained in one pass over the activations."""
    stream: StreamParams | None = None
    """If given, activations come from live forward passes; cached ones are used to initialize."""
    compute: Compute
    precision: Precision = "auto"
    activations_key: str = ""
    """If given, activations of `sae_train` are refused if their key differs."""
    eval_activations_key: str = ""
    """The same for `eval`."""

    @model_validator(mode="after")
    def cells_have_recipes(self) -> Self:
        for cell in self.cells:
            if cell.sae not in self.saes:
                raise ValueError(f"cells: {cell.sae!r} is not one of saes ({', '.join(self.saes)})")
        return self

    def cell_keys(self, cell: SaeCell) -> CellKeys:
        """Return all keys of one of the cells."""
        own = cell.model_dump(include=set(SaeKeys.model_fields))
        return CellKeys(**self.keys.model_dump(), **own)

    def recipe(self, cell: SaeCell) -> Sae:
        """Return the recipe of one of the cells, without its other seeds."""
        return self.saes[cell.sae].model_copy(update={"seeds": (cell.seed,)})

    def only(self, cells: tuple[SaeCell, ...]) -> TrainSaeParams:
        """Return the params of a job for some of the cells."""
        return self.model_copy(update={"cells": cells, "saes": _recipes_of(self.saes, cells)})

    def code(self, cell: SaeCell) -> str:
        """Return the hash of the code that makes one of the cells."""
        return cell.code or _present_code(self.saes[cell.sae], self.keys.variant)

    def cell_key(self, cell: SaeCell, code: str) -> str:
        """Return a hash of all that determines one of the cells, regardless of the job's others."""
        shared = self.model_dump(mode="json", exclude={"keys", "saes", "cells"})
        keys = self.cell_keys(cell).model_dump(mode="json")
        recipe = self.recipe(cell).model_dump(mode="json")
        aim = [] if cell.aim is None else [cell.aim.model_dump(mode="json")]
        return content_key([keys, recipe, cell.local_files, shared, code, *aim])


class DeriveSaeParams(Section):
    """What `nullsae derive_sae` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    recipe: Sae
    compute: Compute
    activations_key: str = ""
    """If given, activations of `sae_train` are refused if their key differs."""
    eval_activations_key: str = ""
    """The same for `eval`."""


def _recipe_files(recipe: Sae, variant: str) -> tuple[Path, ...]:
    """Return the code that only a recipe's SAEs need: the architecture's, or a file reader's."""
    if recipe.made_elsewhere(variant):
        own = recipe.pretrained
        code = with_siblings(own.source_file("pretrained")) if isinstance(own, FromObject) else ()
        return (*files_in(["sae/exchange"], but=["sae/exchange/export.py"]), *code)
    made_by = thing_files(ARCHITECTURES, recipe.architecture)
    return made_by + thing_files(DICTIONARIES, recipe.dictionary)


def _present_code(recipe: Sae, variant: str) -> str:
    return train_sae.code(*_recipe_files(recipe, variant))


def _things(config: Config, wildcards: Wildcards) -> Iterator[Path]:
    for name in {cell["sae"] for cell in trained_together(config, wildcards)}:
        yield from _recipe_files(config.saes[name], wildcards["variant"])


@rule(
    *("activations/blocks.py", "activations/live.py", "core/moments.py", "sae"),
    but=(
        *("sae/architectures", "sae/checkpoints.py", "sae/dictionaries", "sae/exchange"),
        *DERIVING,
    ),
    things=_things,
)
def train_sae(config: Config, wildcards: Wildcards) -> TrainSaeParams:
    """Build params for the SAEs whose keys match: one, or all of a site or of a variant."""
    keys = ModelKeys.of(wildcards)
    cells = tuple(_cell(config, cell) for cell in trained_together(config, wildcards))
    recipes = floor_recipes(config) if is_floor(keys.variant) else config.saes
    return TrainSaeParams(
        seed=config.seed,
        keys=keys,
        saes=_recipes_of(recipes, cells),
        cells=cells,
        stream=_stream(config, keys),
        compute=config.compute,
        precision=config.compute.precision,
        activations_key=key_of(config, keys, "sae_train"),
        eval_activations_key=key_of(config, keys, "eval"),
    )


@rule(
    *DERIVING,
    things=lambda config, cell: thing_files(DICTIONARIES, config.saes[cell["sae"]].dictionary),
)
def derive_sae(config: Config, wildcards: Wildcards) -> DeriveSaeParams:
    """Build params for a dictionary made from another SAE."""
    keys = CellKeys.of(wildcards)
    return DeriveSaeParams(
        seed=config.seed,
        keys=keys,
        recipe=_of_its_own(config.saes[keys.sae], (keys.seed,)),
        compute=config.compute,
        activations_key=key_of(config, keys.model, "sae_train"),
        eval_activations_key=key_of(config, keys.model, "eval"),
    )


def _cell(config: Config, cell: Wildcards) -> SaeCell:
    read: list[str] = []
    keys = SaeKeys.of(cell)
    recipe, used = config.saes[keys.sae], None
    if isinstance(pretrained := recipe.pretrained, str):
        path, inside = pretrained_sae_path(pretrained, keys.site)
        read = folder_files(str(Path(path) / inside)) if is_local(path) else []
    if isinstance(pretrained, FromObject):
        read = [named_file(name) for name in pretrained.files]
    if pretrained is not None and cell["variant"] == "trained":
        used = used_on(config, cell["subject"])
    present = _present_code(recipe, cell["variant"])
    return SaeCell(
        **dict(keys),
        local_files=stamps(read),
        used_on=used,
        code=in_use().code("train_sae", cell, present),
        aim=_aim(config, cell),
    )


def aimed_at(config: Config, cell: Wildcards) -> dict[str, str] | None:
    """Return keys of the pretrained SAE whose L0 an SAE aims at; None if it has its own L0."""
    name = config.saes[cell["sae"]].aimed_at(cell["sae"], cell["variant"])
    if name is None:
        return None
    of_trained = {"subject": cell["subject"], "variant": "trained", "draw": "0"}
    seed = str(config.saes[name].seeds[0])
    return {**of_trained, "site": cell["site"], "sae": name, "seed": seed}


def _aim(config: Config, cell: Wildcards) -> Aim | None:
    keys = aimed_at(config, cell)
    if keys is None:
        return None
    given, recipe = train_sae(config, keys), config.saes[keys["sae"]]
    (found,) = given.cells
    assert recipe.pretrained is not None
    return Aim(
        sae=found.sae,
        seed=found.seed,
        pretrained=recipe.pretrained,
        heldout_tokens=recipe.heldout_tokens,
        key=given.cell_key(found, given.code(found)),
    )


def _recipes_of(recipes: Mapping[str, Sae], cells: Iterable[SaeCell]) -> dict[str, Sae]:
    """Return the recipes of these SAEs, with only their seeds."""
    seeds: dict[str, dict[int, None]] = {}
    for cell in cells:
        seeds.setdefault(cell.sae, {})[cell.seed] = None
    return {n: _of_its_own(recipes[n], tuple(seeds[n])) for n in seeds}


def _of_its_own(recipe: Sae, seeds: tuple[int, ...]) -> Sae:
    """Return the part of a recipe that makes an SAE, without the places of others.

    What is expected of the SAE is left to its evaluation.
    """
    update = {"expect": None, "variants": None, "sites": None, "seeds": seeds}
    return recipe.model_copy(update=update)


def _stream(config: Config, keys: ModelKeys) -> StreamParams | None:
    settings = config.activations
    if not settings.streams:
        return None
    return StreamParams(
        max_tokens=settings.sae_train_tokens,
        shard_tokens=settings.shard_tokens,
        dtype=settings.dtype,
        batch_contexts=settings.batch_contexts,
        fitted_activations_key=fitted_key(config, keys),
    )


class TakeCheckpointParams(Section):
    """`nullsae take_checkpoint` depends on no key of the config."""


@rule("sae/checkpoints.py")
def take_checkpoint(_config: Config, _wildcards: Wildcards) -> TakeCheckpointParams:
    """Build params for a checkpoint, which the training wrote: none."""
    return TakeCheckpointParams()
