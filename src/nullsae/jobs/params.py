"""What each verb takes as `--params`; `nullsae.jobs.slices` cuts it out of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from nullsae.config.compute import Compute
from nullsae.config.corpora import Corpus
from nullsae.config.endpoints import Endpoint
from nullsae.config.evaluation import Evaluation
from nullsae.config.explainers import AnyExplainer
from nullsae.config.latents import Latents
from nullsae.config.randomization import Settings
from nullsae.config.saes import Sae
from nullsae.config.scorers import AnyScorer
from nullsae.config.section import Choice, FloatType, Section
from nullsae.config.sites import site_layer
from nullsae.config.statistics import Statistics
from nullsae.config.study import Config
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.config.toy import Toy, ToyData, ToySource, ToyTraining
from nullsae.config.variants import ModelName, VariantName
from nullsae.core.files import content_key


class ModelKeys(Section):
    subject: str
    variant: ModelName
    draw: NonNegativeInt


class CellKeys(ModelKeys):
    site: str
    sae: str
    seed: NonNegativeInt

    def parts(self) -> tuple[str | int, ...]:
        """The keys in path order, to key a generator with."""
        return (self.subject, self.variant, self.draw, self.site, self.sae, self.seed)


class PrepareCorpusParams(Section):
    corpus: Corpus
    local_files: tuple[str, ...] = ()
    """Name, size and time of each local file that is read: an edit of one counts as a change."""


class TrainSubjectParams(Section):
    seed: NonNegativeInt
    """The config's seed."""
    subject: str
    source: TrainSource
    compute: Compute


class RandomizeModelParams(Settings):
    seed: NonNegativeInt
    keys: ModelKeys
    source: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")] | None = None
    """Where the weights come from; without it, `--trained` names the trained ones' folder."""
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a subject in a local folder."""
    compute: Compute


class CacheActivationsParams(Section):
    sites: tuple[str, ...]
    max_tokens: PositiveInt | None = None
    """Tokens to capture; all of the split by default."""
    seed: NonNegativeInt
    dtype: FloatType
    shard_tokens: PositiveInt
    batch_contexts: PositiveInt
    compute: Compute
    key: str = ""
    """Provenance, written into the manifests; by default made from the inputs."""


class SampleGaussianParams(Section):
    sites: tuple[str, ...]
    max_tokens: PositiveInt | None = None
    """Tokens to sample; as many as the split has by default."""
    seed: NonNegativeInt
    keys: ModelKeys
    dtype: FloatType
    shard_tokens: PositiveInt
    compute: Compute
    key: str = ""
    """Provenance, written into the manifests; by default made from the inputs."""
    fitted_activations_key: str = ""
    """If given, activations to fit to with another key are refused."""


class SaeCell(Section):
    """One SAE of a job, beside the keys that all of its SAEs share."""

    site: str
    sae: str
    """Key of `saes`."""
    seed: NonNegativeInt
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a pretrained SAE in a local folder."""


class StreamParams(Section):
    """How activations are computed anew that are not kept."""

    max_tokens: PositiveInt
    """Tokens of `sae_train` to train on."""
    shard_tokens: PositiveInt
    dtype: FloatType
    batch_contexts: PositiveInt
    fitted_activations_key: str = ""
    """If given, activations to fit to with another key are refused (`gaussian`, floors)."""


class TrainSaeParams(Section):
    seed: NonNegativeInt
    keys: ModelKeys
    saes: Annotated[dict[str, Sae], Field(min_length=1)]
    """Recipes by name, each once, however many SAEs are made by it."""
    cells: Annotated[tuple[SaeCell, ...], Field(min_length=1)]
    """SAEs to make, all trained in one pass over the activations."""
    stream: StreamParams | None = None
    """If given, activations come from live forward passes; the cached ones serve for the start."""
    compute: Compute
    activations_key: str = ""
    """If given, activations of `sae_train` with another key are refused."""
    eval_activations_key: str = ""
    """The same for those of `eval`."""

    @model_validator(mode="after")
    def cells_have_recipes(self) -> Self:
        for cell in self.cells:
            if cell.sae not in self.saes:
                raise ValueError(f"cells: {cell.sae!r} is not one of saes ({', '.join(self.saes)})")
        return self

    def cell_keys(self, cell: SaeCell) -> CellKeys:
        """All keys of one of the cells."""
        own = cell.model_dump(include={"site", "sae", "seed"})
        return CellKeys(**self.keys.model_dump(), **own)

    def recipe(self, cell: SaeCell) -> Sae:
        """The recipe of one of the cells: its other seeds are no business of this SAE."""
        return self.saes[cell.sae].model_copy(update={"seeds": (cell.seed,)})

    def cell_key(self, cell: SaeCell, code: str) -> str:
        """Hash of all that determines one of the cells, whatever it is trained beside.

        Args:
            cell: one of `cells`.
            code: hash of the stage's code.
        """
        shared = self.model_dump(mode="json", exclude={"keys", "saes", "cells"})
        own = (self.cell_keys(cell), self.recipe(cell))
        parts = [part.model_dump(mode="json") for part in own]
        return content_key([*parts, cell.local_files, shared, code])


class EvaluateSaeParams(Section):
    seed: NonNegativeInt
    evaluation: Evaluation
    keys: CellKeys
    compute: Compute
    activations_key: str = ""
    eval_activations_key: str = ""


class CrossEvaluateParams(Section):
    keys: CellKeys
    """Of the SAE."""
    variants: tuple[ModelKeys, ...]
    """Whose activations it is evaluated on, in the order of the given manifests."""
    max_tokens: PositiveInt
    """Tokens of `eval`, from its start."""
    compute: Compute
    activations_keys: tuple[str, ...] = ()
    """If given, activations with other keys are refused."""


class MatchedSae(Section):
    """One SAE of a job, beside the subject, site and recipe that all of its SAEs share."""

    variant: VariantName
    draw: NonNegativeInt
    seed: NonNegativeInt


class MatchDictionariesParams(Section):
    seed: NonNegativeInt
    subject: str
    site: str
    sae: str
    cells: tuple[MatchedSae, ...]
    """The SAEs that are compared with each other."""
    matching_latents: PositiveInt
    compute: Compute


class CollectLatentsParams(Section):
    seed: NonNegativeInt
    keys: CellKeys
    latents: Latents
    compute: Compute
    eval_activations_key: str = ""


class ExplainLatentsParams(Section):
    seed: NonNegativeInt
    keys: CellKeys
    explainer: AnyExplainer
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a prompt of the user's own."""


class PrepareJudgeParams(Section):
    model: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")]
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a model in a local folder or file."""


class ScoreLatentsParams(Section):
    seed: NonNegativeInt
    keys: CellKeys
    scorer: AnyScorer
    judge: Endpoint | None = None
    """Whom the scorer asks; without one, explanations are judged by their token statistics."""
    compute: Compute | None = None
    """Of a scorer that runs a model itself."""
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a prompt of the user's own."""


class AggregateParams(Section):
    seed: NonNegativeInt
    statistics: Statistics


class ReportParams(Section):
    study: Config
    """All of it: the page shows the config that made it."""


class ToyKeys(Section):
    source: str
    data: ToyData
    expansion: PositiveInt
    seed: NonNegativeInt


class TrainToyParams(Section):
    seed: NonNegativeInt
    """The config's seed."""
    keys: ToyKeys
    source: ToySource
    gaussian: Literal["matched", "scalar"] | None = None
    """Of Gaussian data."""
    mlp_hidden_factor: PositiveInt | None = None
    """Of a random network's outputs."""
    training: ToyTraining
    compute: Compute
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a file of word vectors."""


class ReportToyParams(Section):
    toy: Toy
    figure_formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")


def describe(model: type[Section], prefix: str = "") -> list[str]:
    """One line per field of a params class, nested sections included, for help texts."""
    lines = []
    for name, field in model.known_keys().items():
        key = f"{prefix}{name}"
        needed = "required" if field.is_required() else f"default {field.get_default()!r}"
        chosen = [section for m in field.metadata if isinstance(m, Choice) for section in m.all()]
        inner = chosen or _sections(field.annotation)
        if inner and inner != [Config]:
            lines += [line for section in inner for line in describe(section, f"{key}.")]
            continue
        if get_origin(field.annotation) is Literal:
            needed += f", one of {', '.join(map(str, get_args(field.annotation)))}"
        text = " ".join((field.description or "").split())
        lines.append(f"{key} ({needed}){': ' + text if text else ''}")
    return lines


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation names, through unions and optionals."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def pretrained_sae_path(pretrained: str, site: str) -> tuple[str, str]:
    """A pretrained SAE's (folder or hub id, folder within it) with the site filled in."""
    path, _, inside = pretrained.partition("::")
    filled = {"site": site, "layer": str(site_layer(site))}
    for key, value in filled.items():
        path, inside = path.replace(f"{{{key}}}", value), inside.replace(f"{{{key}}}", value)
    return path, inside
