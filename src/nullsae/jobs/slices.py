"""The slice of the config that each job gets: what it uses, and nothing else.

Snakemake runs a job again when the text of its slice changes. The verb parses the same text, so
it cannot depend on anything that is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any

from nullsae.config.autointerp import Autointerp
from nullsae.config.corpora import FilesSource, GgufTokenizer, PretrainedTokenizer
from nullsae.config.llm import Llm
from nullsae.config.model_files import find_gguf
from nullsae.config.saes import Sae
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.config.subjects import TrainSource
from nullsae.config.toy import Toy, WordVectorsSource
from nullsae.config.variants import VARIANTS, fitted_to, has_model, is_floor
from nullsae.core.files import content_key
from nullsae.jobs.code_hash import code_hash
from nullsae.jobs.file_stamps import folder_files, model_files, prompt_stamps, sae_files, stamps
from nullsae.jobs.grid import cross_cells, floor_recipes, matched_cells, trained_together
from nullsae.jobs.params import (
    AggregateParams,
    CacheActivationsParams,
    CellKeys,
    CollectLatentsParams,
    CrossEvaluateParams,
    EvaluateSaeParams,
    ExplainLatentsParams,
    MatchDictionariesParams,
    MatchedSae,
    ModelKeys,
    PrepareCorpusParams,
    PrepareJudgeParams,
    RandomizeModelParams,
    ReportParams,
    ReportToyParams,
    SaeCell,
    SampleGaussianParams,
    ScoreLatentsParams,
    StreamParams,
    ToyKeys,
    TrainSaeParams,
    TrainSubjectParams,
    TrainToyParams,
)


class _Same:
    """A config as the key of a cache: itself, whatever it holds."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.config is other.config

    def __hash__(self) -> int:
        return id(self.config)


def activations_key(config: Config, subject: str, variant: str, draw: int, split: str) -> str:
    """Everything that determines a variant's activations at any one site, as one short key.

    Sites are left out: adding one must not make the others' activations look different. Local
    files are looked at once per config: thousands of jobs share a variant's activations.
    """
    return _activations_key(_Same(config), subject, variant, draw, split)


@lru_cache(maxsize=4096)
def _activations_key(same: _Same, subject: str, variant: str, draw: int, split: str) -> str:
    config = same.config
    corpus = config.subjects[subject].corpus
    if fitted_keys := fitted_to(variant, draw):
        fitted = activations_key(config, subject, *fitted_keys, "sae_train")
        settings = config.activations.model_dump(mode="json", include={"dtype", "shard_tokens"})
        n_tokens = config.activations.cached_tokens if split == "sae_train" else None
        own = code_hash("sample_gaussian")
        return content_key([fitted, own, config.seed, variant, draw, split, settings, n_tokens])
    keys = {"subject": subject, "variant": variant, "draw": str(draw)}
    upstream: list[tuple[str, Mapping[str, str]]] = [
        ("prepare_corpus", {"corpus": corpus}),
        ("randomize_model", keys),
    ]
    if isinstance(config.subjects[subject].source, TrainSource):
        upstream.append(("train_subject", {"subject": subject}))
    parts: list[Any] = [rule_params(config, rule, wildcards) for rule, wildcards in upstream]
    parts += [code_hash(rule) for rule, _ in upstream]
    parts += [code_hash("cache_activations"), config.seed, split]
    # How SAEs are trained on them says nothing about them.
    used = {"dtype", "shard_tokens", "batch_contexts"}
    parts.append(config.activations.model_dump(mode="json", include=used))
    parts.append(config.activations.cached_tokens if split == "sae_train" else None)
    return content_key(parts)


def rule_params(config: Config, rule: str, wildcards: Mapping[str, str]) -> str:
    """The slice of the config that one job uses, as sorted JSON.

    Args:
        config: the checked config.
        rule: name of the rule, as in Snakemake.
        wildcards: the job's wildcards.

    Raises:
        ValueError: no such rule.
    """
    # The page shows SAEs and explainers in the order of the config; nothing else depends on it.
    return as_json(job_section(config, rule, wildcards), ordered=rule != "report")


def as_json(section: Section, *, ordered: bool = True) -> str:
    """A section as JSON in one line, its keys sorted or in the order of the config."""
    return json.dumps(section.model_dump(mode="json"), sort_keys=ordered, separators=(",", ":"))


def _sae_cell(config: Config, cell: Mapping[str, str]) -> SaeCell:
    pretrained, site = config.saes[cell["sae"]].pretrained, cell["site"]
    files = stamps(sae_files(pretrained, site))
    return SaeCell(site=site, sae=cell["sae"], seed=int(cell["seed"]), local_files=files)


def _score_latents(
    config: Config, keys: CellKeys, explainer: str, scorer: str
) -> ScoreLatentsParams:
    section = config.scorers[scorer].for_job(config.writer(explainer))
    return ScoreLatentsParams(
        seed=config.seed,
        keys=keys,
        scorer=section,
        judge=config.asked(explainer, scorer),
        compute=None if section.model_in_job is None else config.compute,
        local_files=prompt_stamps(section),
    )


def asks(config: Config, rule: str, wildcards: Mapping[str, str]) -> bool:
    """Whether a job of `explain_latents` or `score_latents` asks an endpoint."""
    explainer = wildcards["explainer"]
    if rule == "explain_latents":
        return config.explainers[explainer].endpoint is not None
    return config.asked(explainer, wildcards["scorer"]) is not None


def is_shared_out(config: Config, rule: str, wildcards: Mapping[str, str]) -> bool:
    """Whether several jobs may share an SAE's latents: those that ask or run a language model."""
    runs_one = (
        rule == "score_latents" and config.scorers[wildcards["scorer"]].model_in_job is not None
    )
    return runs_one or asks(config, rule, wildcards)


def recipes_of(recipes: Mapping[str, Sae], cells: Iterable[SaeCell]) -> dict[str, Sae]:
    """The recipes of these SAEs, with no other seeds than theirs."""
    seeds: dict[str, dict[int, None]] = {}
    for cell in cells:
        seeds.setdefault(cell.sae, {})[cell.seed] = None
    return {
        name: recipes[name].model_copy(update={"seeds": tuple(found)})
        for name, found in seeds.items()
    }


def _fitted_key(config: Config, subject: str, variant: str, draw: int) -> str:
    """Key of the activations that Gaussian ones are fitted to; "" for those of a model."""
    fitted = fitted_to(variant, draw)
    return activations_key(config, subject, *fitted, "sae_train") if fitted else ""


def _stream(config: Config, subject: str, variant: str, draw: int) -> StreamParams | None:
    settings = config.activations
    if settings.mode != "stream":
        return None
    return StreamParams(
        max_tokens=settings.sae_train_tokens,
        shard_tokens=settings.shard_tokens,
        dtype=settings.dtype,
        batch_contexts=settings.batch_contexts,
        fitted_activations_key=_fitted_key(config, subject, variant, draw),
    )


def _train_toy(config: Config, w: Mapping[str, str]) -> TrainToyParams:
    toy = config.toy or Toy()
    keys = ToyKeys.model_validate({**w, "expansion": int(w["expansion"]), "seed": int(w["seed"])})
    source = toy.sources[keys.source]
    read = [source.path] if isinstance(source, WordVectorsSource) else []
    return TrainToyParams(
        seed=config.seed,
        keys=keys,
        source=source,
        gaussian=toy.gaussian if "gaussian" in keys.data else None,
        mlp_hidden_factor=toy.mlp_hidden_factor if "mlp" in keys.data else None,
        training=toy.training,
        compute=config.compute,
        local_files=stamps(escape(str(Path(path).expanduser())) for path in read),
    )


def job_section(config: Config, rule: str, wildcards: Mapping[str, str]) -> Section:
    """The slice of the config that one job uses; ValueError for no such rule."""
    w = wildcards
    seed, compute = config.seed, config.compute
    if rule == "prepare_corpus":
        corpus = config.corpora[w["corpus"]]
        read = list(corpus.source.paths) if isinstance(corpus.source, FilesSource) else []
        if isinstance(corpus.tokenizer, PretrainedTokenizer):
            read += folder_files(corpus.tokenizer.path)
        if isinstance(corpus.tokenizer, GgufTokenizer):
            where = f"config: corpora.{w['corpus']}.tokenizer"
            read.append(escape(str(find_gguf(corpus.tokenizer, where=where))))
        return PrepareCorpusParams(corpus=corpus, local_files=stamps(read))
    if rule == "aggregate":
        return AggregateParams(seed=seed, statistics=config.statistics)
    if rule == "report":
        # How endpoints are asked, and how work is shared out, changes no number.
        alone = {"activations": config.activations.model_copy(update={"chunks": 1})}
        other: dict[str, Any] = {"llm": Llm(), "autointerp": Autointerp(), "toy": None}
        return ReportParams(study=config.model_copy(update={**other, **alone}))
    if rule == "train_toy":
        return _train_toy(config, w)
    if rule == "report_toy":
        formats = config.report.figure_formats
        return ReportToyParams(toy=config.toy or Toy(), figure_formats=formats)
    if rule == "prepare_judge":
        scorer = config.scorers[w["scorer"]]
        if scorer.model_in_job is None:
            raise ValueError(f"scorer {w['scorer']} runs no model itself")
        read = model_files(scorer.model_in_job, f"config: scorers.{w['scorer']}.model")
        return PrepareJudgeParams(model=scorer.model_in_job, local_files=stamps(read))

    subject = config.subjects[w["subject"]]
    source = subject.source
    settings = config.activations
    if rule == "train_subject":
        if not isinstance(source, TrainSource):
            raise ValueError(f"subject {w['subject']} is not trained here")
        return TrainSubjectParams(seed=seed, subject=w["subject"], source=source, compute=compute)

    if rule == "match_dictionaries":
        return MatchDictionariesParams(
            seed=seed,
            **{name: w[name] for name in ("subject", "site", "sae")},
            cells=tuple(MatchedSae(**cell) for cell in matched_cells(config, w["sae"])),
            matching_latents=config.evaluation.matching_latents,
            compute=compute,
        )

    variant, draw = w["variant"], int(w["draw"])
    model_keys: dict[str, Any] = {"subject": w["subject"], "variant": variant, "draw": draw}
    if rule == "randomize_model":
        given = None if isinstance(source, TrainSource) else source
        read = model_files(given, f"config: subjects.{w['subject']}.source")
        return RandomizeModelParams(
            seed=seed,
            keys=ModelKeys(**model_keys),
            source=given,
            local_files=stamps(read),
            compute=compute,
            **VARIANTS[variant].settings(config.randomization),
        )
    captured = {
        split: activations_key(config, w["subject"], variant, draw, split)
        for split in ("sae_train", "eval")
    }
    if rule == "sample_gaussian":
        return SampleGaussianParams(
            sites=subject.sites,
            max_tokens=settings.cached_tokens if w["split"] == "sae_train" else None,
            seed=seed,
            keys=ModelKeys(**model_keys),
            dtype=settings.dtype,
            shard_tokens=settings.shard_tokens,
            compute=compute,
            key=captured[w["split"]],
            fitted_activations_key=_fitted_key(config, w["subject"], variant, draw),
        )
    if rule == "cache_activations":
        return CacheActivationsParams(
            sites=subject.sites,
            max_tokens=settings.cached_tokens if w["split"] == "sae_train" else None,
            seed=seed,
            dtype=settings.dtype,
            shard_tokens=settings.shard_tokens,
            batch_contexts=settings.batch_contexts,
            compute=compute,
            key=captured[w["split"]],
        )
    if rule == "train_sae":
        cells = tuple(_sae_cell(config, cell) for cell in trained_together(config, w))
        return TrainSaeParams(
            seed=seed,
            keys=ModelKeys(**model_keys),
            saes=recipes_of(floor_recipes(config) if is_floor(variant) else config.saes, cells),
            cells=cells,
            stream=_stream(config, w["subject"], variant, draw),
            compute=compute,
            activations_key=captured["sae_train"],
            eval_activations_key=captured["eval"],
        )
    keys = CellKeys(**model_keys, site=w["site"], sae=w["sae"], seed=int(w["seed"]))
    if rule == "evaluate_sae":
        return EvaluateSaeParams(
            seed=seed,
            # Cross-evaluation and floors are jobs of their own; without a model, no fidelity.
            evaluation=config.evaluation.model_validate(
                config.evaluation.model_dump(
                    include={"fidelity_tokens"} if has_model(variant) else set()
                )
            ),
            keys=keys,
            compute=compute,
            activations_key=captured["sae_train"],
            eval_activations_key=captured["eval"],
        )
    if rule == "cross_evaluate":
        if config.evaluation.cross_tokens is None:
            raise ValueError("evaluation.cross_tokens is not set")
        others = [ModelKeys(**cell) for cell in cross_cells(config, w)]
        return CrossEvaluateParams(
            keys=keys,
            variants=tuple(others),
            max_tokens=config.evaluation.cross_tokens,
            compute=compute,
            activations_keys=tuple(
                activations_key(config, other.subject, other.variant, other.draw, "eval")
                for other in others
            ),
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
        explainer = config.explainers[w["explainer"]]
        return ExplainLatentsParams(
            seed=seed, keys=keys, explainer=explainer, local_files=prompt_stamps(explainer)
        )
    if rule == "score_latents":
        return _score_latents(config, keys, w["explainer"], w["scorer"])
    raise ValueError(f"no rule {rule!r}")
