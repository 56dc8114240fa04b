"""Jobs of workflow/rules/autointerp.smk."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from nullsae.config.compute import Compute
from nullsae.config.endpoints import Endpoint
from nullsae.config.explainers import Explainer, OpenAIExplainer
from nullsae.config.scorers import AskingScorer, IntruderScorer, LikelihoodScorer, Scorer
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.jobs.file_stamps import model_files, named_file, stamps
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.rules import Wildcards, rule


class ExplainLatentsParams(Section):
    """What `nullsae explain_latents` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    explainer: Explainer
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a prompt of the user's own."""


@rule(
    *(
        f"autointerp/{name}"
        for name in (
            *("explainers.py", "lexical.py", "marking.py", "prompting.py", "replies.py"),
            *("shards.py", "written.py", "prompts/explain.txt"),
        )
    )
)
def explain_latents(config: Config, wildcards: Wildcards) -> ExplainLatentsParams:
    """An SAE's latents and who explains them."""
    explainer = config.explainers[wildcards["explainer"]]
    return ExplainLatentsParams(
        seed=config.seed,
        keys=CellKeys.of(wildcards),
        explainer=explainer,
        local_files=_prompt_stamps(explainer),
    )


class PrepareJudgeParams(Section):
    """What `nullsae prepare_judge` takes."""

    model: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")]
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, of a model in a local folder or file."""


@rule("autointerp/local_judge.py")
def prepare_judge(config: Config, wildcards: Wildcards) -> PrepareJudgeParams:
    """The model of a scorer that runs one itself."""
    name = wildcards["scorer"]
    scorer = config.scorers[name]
    if not isinstance(scorer, LikelihoodScorer):
        raise ValueError(f"scorer {name} runs no model itself")
    read = model_files(scorer.model, f"config: scorers.{name}.model")
    return PrepareJudgeParams(model=scorer.model, local_files=stamps(read))


class ScoreLatentsParams(Section):
    """What `nullsae score_latents` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    scorer: Scorer
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
        *("autointerp/explainers.py", "autointerp/lexical.py", "autointerp/written.py"),
        *("autointerp/prompts/explain.txt", "autointerp/local_judge.py"),
    ),
)
def score_latents(config: Config, wildcards: Wildcards) -> ScoreLatentsParams:
    """An SAE's latents, who explained them and who scores."""
    scorer = config.scorers[wildcards["scorer"]]
    judge, compute = None, None
    if isinstance(scorer, IntruderScorer):
        judge = scorer.judge
    elif isinstance(scorer, LikelihoodScorer):
        compute = config.compute
    else:
        writer = config.writer(wildcards["explainer"])
        if isinstance(writer, OpenAIExplainer):
            own = writer.model_dump(include=set(Endpoint.model_fields))
            judge = scorer.judge or Endpoint(**own)
            scorer = scorer.model_copy(update={"judge": None})
        else:
            # Token statistics are judged by a formula: how a model is asked is no business of it.
            default = {
                name: field.get_default() for name, field in AskingScorer.model_fields.items()
            }
            scorer = scorer.model_copy(update=default)
    return ScoreLatentsParams(
        seed=config.seed,
        keys=CellKeys.of(wildcards),
        scorer=scorer,
        judge=judge,
        compute=compute,
        local_files=_prompt_stamps(scorer),
    )


def _prompt_stamps(section: Section) -> tuple[str, ...]:
    """The stamp of a prompt of the user's own."""
    prompt = getattr(section, "prompt", None)
    return stamps([named_file(prompt)]) if prompt else ()


def asks(config: Config, rule: str, wildcards: Wildcards) -> bool:
    """Whether a job of `explain_latents` or `score_latents` asks an endpoint."""
    if rule == "explain_latents":
        return isinstance(config.explainers[wildcards["explainer"]], OpenAIExplainer)
    scorer = config.scorers[wildcards["scorer"]]
    if isinstance(scorer, IntruderScorer | LikelihoodScorer):
        return isinstance(scorer, IntruderScorer)
    return isinstance(config.writer(wildcards["explainer"]), OpenAIExplainer)
