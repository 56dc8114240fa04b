"""Jobs of workflow/rules/autointerp.smk."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from nullsae.config.compute import Compute
from nullsae.config.endpoints import Endpoint
from nullsae.config.explainers import EXPLAINERS, AnyExplainer
from nullsae.config.scorers import SCORERS, AnyScorer
from nullsae.config.section import Kind, Section
from nullsae.config.study import Config
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.file_stamps import model_files, named_file, stamps
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.rules import Wildcards, rule


class ExplainLatentsParams(Section):
    """What `nullsae explain_latents` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    explainer: AnyExplainer
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a prompt of the user's own."""


@rule(
    *("autointerp/examples.py", "autointerp/explain.py", "autointerp/marking.py"),
    *("autointerp/labels.py", "autointerp/loose_json.py", "autointerp/reasoning.py"),
    *("autointerp/prompting.py", "autointerp/replies.py", "autointerp/shards.py"),
    *("autointerp/prompts/explain.txt", "corpus/token_text.py"),
    things=lambda config, wildcards: thing_files(
        EXPLAINERS, config.explainers[wildcards["explainer"]].name
    ),
)
def explain_latents(config: Config, wildcards: Wildcards) -> ExplainLatentsParams:
    """An SAE's latents and who explains them."""
    explainer = config.explainers[wildcards["explainer"]]
    return ExplainLatentsParams(
        seed=config.seed,
        keys=CellKeys.of(wildcards),
        explainer=explainer,
        local_files=_own_files(explainer),
    )


class PrepareJudgeParams(Section):
    """What `nullsae prepare_judge` takes."""

    model: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")]
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a model in a local folder or file."""


@rule("autointerp/local_model.py")
def prepare_judge(config: Config, wildcards: Wildcards) -> PrepareJudgeParams:
    """The model of a scorer that runs one itself."""
    name = wildcards["scorer"]
    scorer = config.scorers[name]
    model = scorer.model_in_job
    if model is None:
        raise ValueError(f"scorer {name} runs no model itself")
    read = model_files(model, f"config: scorers.{name}.model")
    return PrepareJudgeParams(model=model, local_files=stamps(read))


class ScoreLatentsParams(Section):
    """What `nullsae score_latents` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    scorer: AnyScorer
    judge: Endpoint | None = None
    """Whom the scorer asks; without one, explanations are judged by their token statistics."""
    compute: Compute | None = None
    """Of a scorer that runs a model itself."""
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a prompt of the user's own."""


@rule(
    "autointerp",
    but=(
        # Replies are kept by what was asked, so asking again after an edit of it costs no call.
        *("autointerp/llm/serve_gguf.py", "autointerp/llm/session.py"),
        *("autointerp/explain.py", "autointerp/explainers", "autointerp/prompts/explain.txt"),
        *("autointerp/local_model.py", "autointerp/scorers"),
    ),
    things=lambda config, wildcards: thing_files(SCORERS, config.scorers[wildcards["scorer"]].name),
)
def score_latents(config: Config, wildcards: Wildcards) -> ScoreLatentsParams:
    """An SAE's latents, who explained them and who scores."""
    explainer, name = wildcards["explainer"], wildcards["scorer"]
    scorer = config.scorers[name].for_job(config.writer(explainer))
    return ScoreLatentsParams(
        seed=config.seed,
        keys=CellKeys.of(wildcards),
        scorer=scorer,
        judge=config.asked(explainer, name),
        compute=None if scorer.model_in_job is None else config.compute,
        local_files=_own_files(scorer),
    )


def _own_files(section: Kind) -> tuple[str, ...]:
    """The stamps of the user's own files that an explainer or scorer reads, such as a prompt."""
    return stamps(map(named_file, section.local_files))


def asks(config: Config, rule: str, wildcards: Wildcards) -> bool:
    """Whether a job of `explain_latents` or `score_latents` asks an endpoint."""
    explainer = wildcards["explainer"]
    if rule == "explain_latents":
        return config.explainers[explainer].endpoint is not None
    return config.asked(explainer, wildcards["scorer"]) is not None


def is_shared_out(config: Config, rule: str, wildcards: Wildcards) -> bool:
    """Whether several jobs may share an SAE's latents: those that ask or run a language model."""
    scorer = config.scorers[wildcards["scorer"]] if rule == "score_latents" else None
    runs_one = scorer is not None and scorer.model_in_job is not None
    return runs_one or asks(config, rule, wildcards)
