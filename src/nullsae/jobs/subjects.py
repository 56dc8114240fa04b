"""Jobs of workflow/rules/subjects.smk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from nullsae.config.compute import Compute
from nullsae.config.randomization import Randomization, Settings
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.config.variants import VARIANTS, is_positive_control
from nullsae.core.files import content_key
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.file_stamps import folder_files, model_files, stamps
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.rules import PRESENT, Codes, Wildcards, rule

# Code that only makes positive controls.
RETRAINING = "subjects/retraining.py"

Source = TrainSource | PretrainedSource | GgufSource
# Code that measures effects of directions on predictions; it makes no model.
OF_LATENTS = ("subjects/unembedding.py", "subjects/interventions.py")


class TrainSubjectParams(Section):
    """What `nullsae train_subject` takes."""

    seed: NonNegativeInt
    """The config's seed."""
    subject: str
    source: TrainSource
    compute: Compute


def _made_by_training() -> tuple[Path, ...]:
    made = (name for name, variant in VARIANTS.items() if variant.by_training)
    return thing_files(VARIANTS, *made)


@rule(
    *("subjects", "core/moments.py"),
    but=("subjects/changes.py", "subjects/variants", RETRAINING, *OF_LATENTS),
    things=lambda _config, _wildcards: _made_by_training(),
)
def train_subject(config: Config, wildcards: Wildcards) -> TrainSubjectParams:
    """Build params for a subject that is trained here."""
    name = wildcards["subject"]
    source = config.subjects[name].source
    if not isinstance(source, TrainSource):
        raise ValueError(f"subject {name} is not trained here")
    return TrainSubjectParams(seed=config.seed, subject=name, source=source, compute=config.compute)


class RetrainSubjectParams(Section):
    """What `nullsae retrain_subject` takes."""

    seed: NonNegativeInt
    """The config's seed."""
    keys: ModelKeys
    source: Annotated[TrainSource | PretrainedSource, Field(discriminator="kind")]
    """How it is trained, or where its weights come from: `retrained` of a pretrained source."""
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for a retrained subject in a local folder."""
    compute: Compute


@rule(
    *("subjects", "core/moments.py"),
    but=("subjects/changes.py", "subjects/variants"),
    things=lambda _, wildcards: thing_files(VARIANTS, wildcards["variant"]),
)
def retrain_subject(config: Config, wildcards: Wildcards) -> RetrainSubjectParams:
    """Build params for a positive control, trained from another seed here or elsewhere."""
    keys = ModelKeys.of(wildcards)
    return _retrain(config.seed, config.compute, keys, config.subjects[keys.subject].source)


def _retrain(seed: int, compute: Compute, keys: ModelKeys, source: Source) -> RetrainSubjectParams:
    variant = VARIANTS[keys.variant]
    given = variant.source_of(source, keys.draw)
    if lacking := variant.lacks(given):
        raise ValueError(f"subject {keys.subject}: source.{lacking}")
    own = [] if isinstance(given, TrainSource) else folder_files(variant.weights_of(given)[0])
    return RetrainSubjectParams(
        seed=seed, keys=keys, source=given, local_files=stamps(own), compute=compute
    )


def training_key(
    params: TrainSubjectParams | RetrainSubjectParams, tokens: Mapping[str, Any]
) -> str:
    """Return a short key of all that determines a subject's training, which names its checkpoint.

    Args:
        params: the rule's params.
        tokens: the manifest of the corpus' `sae_train` split.
    """
    made_by = train_subject if isinstance(params, TrainSubjectParams) else retrain_subject
    return content_key([params.model_dump(mode="json"), made_by.code(), tokens])


class RandomizeModelParams(Settings):
    """What `nullsae randomize_model` takes."""

    seed: NonNegativeInt
    keys: ModelKeys
    source: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")] | None = None
    """Where the weights come from; without it, `--trained` names the folder of the trained ones."""
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for a subject in a local folder."""
    compute: Compute


@rule(
    *("subjects", "core/moments.py"),
    but=("subjects/training.py", "subjects/variants", RETRAINING, *OF_LATENTS),
    things=lambda _, wildcards: thing_files(VARIANTS, wildcards["variant"]),
)
def randomize_model(config: Config, wildcards: Wildcards) -> RandomizeModelParams:
    """Build params for a variant of a subject, with the settings that this variant reads."""
    keys = ModelKeys.of(wildcards)
    source = config.subjects[keys.subject].source
    return _randomize(config.seed, config.compute, keys, source, config.randomization)


def _randomize(
    seed: int, compute: Compute, keys: ModelKeys, source: Source, settings: Randomization
) -> RandomizeModelParams:
    variant = VARIANTS[keys.variant]
    given = None if isinstance(source, TrainSource) else variant.source_of(source, keys.draw)
    return RandomizeModelParams(
        seed=seed,
        keys=keys,
        source=given,
        local_files=stamps(model_files(given, f"config: subjects.{keys.subject}.source")),
        compute=compute,
        **variant.settings(settings),
    )


@cache
def model_key(
    seed: int,
    compute: Compute,
    keys: ModelKeys,
    source: Source,
    settings: Randomization,
    codes: Codes = PRESENT,
) -> str:
    """Return a short key of all that determines a variant's weights, except the corpus.

    Local files are read once.
    """
    things = thing_files(VARIANTS, keys.variant)
    if is_positive_control(keys.variant):
        retrained = _retrain(seed, compute, keys, source).model_dump(mode="json")
        return content_key([retrained, codes.of(retrain_subject, *things)])
    params: list[Section] = [_randomize(seed, compute, keys, source, settings)]
    code = [codes.of(randomize_model, *things)]
    if isinstance(source, TrainSource):
        params.append(
            TrainSubjectParams(seed=seed, subject=keys.subject, source=source, compute=compute)
        )
        code.append(codes.of(train_subject, *_made_by_training()))
    return content_key([[each.model_dump(mode="json") for each in params], code])
