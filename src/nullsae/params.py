"""What each rule takes from the config, and nothing else.

`rule_params` gives a job's slice as sorted JSON: Snakemake runs a job again when that text
changes. The verb parses the same text, so it cannot depend on anything that is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from glob import escape, glob
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, NonNegativeInt, PositiveInt

from nullsae import stages
from nullsae.config import (
    Activations,
    Compute,
    Config,
    Corpus,
    Evaluation,
    Explainer,
    Latents,
    Sae,
    Scorer,
    Statistics,
    VariantName,
)
from nullsae.files import content_key
from nullsae.inputs import (
    FilesSource,
    FloatType,
    PretrainedSource,
    PretrainedTokenizer,
    Section,
    TrainSource,
    is_local,
)


class ModelKeys(Section):
    subject: str
    variant: VariantName
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


class RandomizeModelParams(Section):
    seed: NonNegativeInt
    keys: ModelKeys
    source: PretrainedSource | None = None
    """Where the trained weights come from; without it, `--trained` names their folder."""
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a subject in a local folder."""
    norm_parameters: str | None = None
    embedding_noise_std: float | None = None
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


class TrainSaeParams(Section):
    seed: NonNegativeInt
    keys: CellKeys
    sae: Sae
    compute: Compute
    activations_key: str = ""
    """If given, activations of `sae_train` with another key are refused."""
    eval_activations_key: str = ""
    """The same for those of `eval`."""


class EvaluateSaeParams(Section):
    evaluation: Evaluation
    keys: CellKeys
    compute: Compute
    activations_key: str = ""
    eval_activations_key: str = ""


class CollectLatentsParams(Section):
    seed: NonNegativeInt
    keys: CellKeys
    latents: Latents
    compute: Compute
    eval_activations_key: str = ""


class ExplainLatentsParams(Section):
    seed: NonNegativeInt
    keys: CellKeys
    explainer: Explainer


class ScoreLatentsParams(Section):
    seed: NonNegativeInt
    keys: CellKeys
    scorer: Scorer


class AggregateParams(Section):
    seed: NonNegativeInt
    statistics: Statistics


class ReportParams(Section):
    study: Config
    """All of it: the page shows the config that made it."""


def describe(model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per field of a params class, nested sections included, for help texts."""
    lines = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        needed = "required" if field.is_required() else f"default {field.get_default()!r}"
        inner = _sections(field.annotation)
        if inner and inner != [Config]:
            lines += [line for section in inner for line in describe(section, f"{key}.")]
            continue
        if get_origin(field.annotation) is Literal:
            needed += f", one of {', '.join(map(str, get_args(field.annotation)))}"
        text = " ".join((field.description or "").split())
        lines.append(f"{key} ({needed}){': ' + text if text else ''}")
    return lines


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation names, through unions and optionals."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def activations_key(config: Config, subject: str, variant: str, draw: int, split: str) -> str:
    """Everything that determines a variant's activations at any one site, as one short key.

    Sites are left out: adding one must not make the others' activations look different.
    """
    keys = {"subject": subject, "variant": variant, "draw": str(draw)}
    corpus = config.subjects[subject].corpus
    upstream: list[tuple[str, Mapping[str, str]]] = [
        ("prepare_corpus", {"corpus": corpus}),
        ("randomize_model", keys),
    ]
    if isinstance(config.subjects[subject].source, TrainSource):
        upstream.append(("train_subject", {"subject": subject}))
    parts: list[Any] = [rule_params(config, rule, wildcards) for rule, wildcards in upstream]
    parts += [stages.code_hash(rule) for rule, _ in upstream]
    parts += [stages.code_hash("cache_activations"), config.seed, split]
    not_used = {"sae_train_tokens"} if split == "eval" else set()
    parts.append(config.activations.model_dump(mode="json", exclude=not_used))
    return content_key(parts)


def _stamps(patterns: Iterable[str]) -> tuple[str, ...]:
    """Name, size and time of the files that match, in order of their names."""
    files = {Path(name) for pattern in patterns for name in glob(pattern, recursive=True)}
    stats = ((file, file.stat()) for file in sorted(files) if file.is_file())
    return tuple(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)


def _folder(path: str) -> list[str]:
    """The pattern of all files in a local model or tokenizer folder; none for a hub id."""
    return [f"{escape(str(Path(path).expanduser()))}/*"] if is_local(path) else []


def rule_params(config: Config, rule: str, wildcards: Mapping[str, str]) -> str:
    """The slice of the config that one job uses, as sorted JSON.

    Args:
        config: the checked config.
        rule: name of the rule, as in Snakemake.
        wildcards: the job's wildcards.

    Raises:
        ValueError: no such rule.
    """
    section = _section(config, rule, wildcards)
    return json.dumps(section.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def _section(config: Config, rule: str, wildcards: Mapping[str, str]) -> Section:
    w = wildcards
    seed, compute = config.seed, config.compute
    if rule == "prepare_corpus":
        corpus = config.corpora[w["corpus"]]
        read = list(corpus.source.paths) if isinstance(corpus.source, FilesSource) else []
        if isinstance(corpus.tokenizer, PretrainedTokenizer):
            read += _folder(corpus.tokenizer.path)
        return PrepareCorpusParams(corpus=corpus, local_files=_stamps(read))
    if rule == "aggregate":
        return AggregateParams(seed=seed, statistics=config.statistics)
    if rule == "report":
        return ReportParams(study=config)

    subject = config.subjects[w["subject"]]
    source = subject.source
    if rule == "train_subject":
        if not isinstance(source, TrainSource):
            raise ValueError(f"subject {w['subject']} is not trained here")
        return TrainSubjectParams(seed=seed, subject=w["subject"], source=source, compute=compute)

    variant, draw = w["variant"], int(w["draw"])
    model_keys: dict[str, Any] = {"subject": w["subject"], "variant": variant, "draw": draw}
    randomization = config.randomization
    if rule == "randomize_model":
        pretrained = source if isinstance(source, PretrainedSource) else None
        return RandomizeModelParams(
            seed=seed,
            keys=ModelKeys(**model_keys),
            source=pretrained,
            local_files=_stamps(_folder(pretrained.path) if pretrained else []),
            norm_parameters=(
                randomization.norm_parameters if variant.startswith("rerandomized") else None
            ),
            embedding_noise_std=(
                randomization.embedding_noise_std if variant == "noise_embeddings" else None
            ),
            compute=compute,
        )
    captured = {
        split: activations_key(config, w["subject"], variant, draw, split)
        for split in ("sae_train", "eval")
    }
    if rule == "cache_activations":
        settings: Activations = config.activations
        return CacheActivationsParams(
            sites=subject.sites,
            max_tokens=settings.sae_train_tokens if w["split"] == "sae_train" else None,
            seed=seed,
            dtype=settings.dtype,
            shard_tokens=settings.shard_tokens,
            batch_contexts=settings.batch_contexts,
            compute=compute,
            key=captured[w["split"]],
        )
    keys = CellKeys(**model_keys, site=w["site"], sae=w["sae"], seed=int(w["seed"]))
    if rule == "train_sae":
        # The other seeds of the recipe are no business of this job.
        sae = config.saes[w["sae"]].model_copy(update={"seeds": (keys.seed,)})
        return TrainSaeParams(
            seed=seed,
            keys=keys,
            sae=sae,
            compute=compute,
            activations_key=captured["sae_train"],
            eval_activations_key=captured["eval"],
        )
    if rule == "evaluate_sae":
        return EvaluateSaeParams(
            evaluation=config.evaluation,
            keys=keys,
            compute=compute,
            activations_key=captured["sae_train"],
            eval_activations_key=captured["eval"],
        )
    if rule == "collect_latents":
        return CollectLatentsParams(
            seed=seed,
            keys=keys,
            latents=config.latents,
            compute=compute,
            eval_activations_key=captured["eval"],
        )
    if rule == "explain_latents":
        return ExplainLatentsParams(
            seed=seed, keys=keys, explainer=config.explainers[w["explainer"]]
        )
    if rule == "score_latents":
        return ScoreLatentsParams(seed=seed, keys=keys, scorer=config.scorers[w["scorer"]])
    raise ValueError(f"no rule {rule!r}")
