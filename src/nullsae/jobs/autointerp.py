"""Jobs of workflow/rules/autointerp.smk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt

from nullsae.config.compute import Compute
from nullsae.config.endpoints import Endpoint
from nullsae.config.explainers import EXPLAINERS, AnyExplainer, Explainer
from nullsae.config.imported import Imported
from nullsae.config.scorers import SCORERS, AnyScorer
from nullsae.config.section import Kind, Section
from nullsae.config.study import NO_EXPLAINER, Config
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.jobs.code_hash import files_in, thing_files
from nullsae.jobs.file_stamps import model_files, path_stamps, stamps
from nullsae.jobs.grid import of_model, sae_cells
from nullsae.jobs.keys import CellKeys, ModelKeys, SaeKeys
from nullsae.jobs.rules import Wildcards, rule


class ExplainLatentsParams(Section):
    """What `nullsae explain_latents` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    explainer: AnyExplainer
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for the user's own prompt."""


@rule(
    *("autointerp/examples.py", "autointerp/explain.py", "autointerp/explanation_text.py"),
    *("autointerp/label_lines.py", "autointerp/label_trees.py", "autointerp/label_words.py"),
    *("autointerp/labels.py", "autointerp/loose_json.py", "autointerp/reasoning.py"),
    *("autointerp/marking.py", "autointerp/prompting.py", "autointerp/replies.py"),
    *("autointerp/shards.py", "autointerp/prompts/explain.txt", "corpus/token_text.py"),
    things=lambda config, wildcards: thing_files(
        EXPLAINERS, config.explainers[wildcards["explainer"]].name
    ),
)
def explain_latents(config: Config, wildcards: Wildcards) -> ExplainLatentsParams:
    """Build params for an SAE's latents and their explainer."""
    explainer = config.explainers[wildcards["explainer"]]
    return ExplainLatentsParams(
        seed=config.seed,
        keys=CellKeys.of(wildcards),
        explainer=explainer,
        local_files=_own_files([explainer], [wildcards]),
    )


class PrepareJudgeParams(Section):
    """What `nullsae prepare_judge` takes."""

    model: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")]
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for a model in a local folder or file."""


@rule("autointerp/local_model.py")
def prepare_judge(config: Config, wildcards: Wildcards) -> PrepareJudgeParams:
    """Build params for the model that a scorer runs itself."""
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
    """The endpoint that the scorer asks; without one, it judges by token statistics."""
    compute: Compute | None = None
    """For a scorer that runs a model itself."""
    explainers: tuple[AnyExplainer, ...] = ()
    """Explainers without an endpoint whose explanations are judged. The job itself runs the first,
    then the one that exchanges its explanations, and so on. So no judge is asked again because a
    file that others share was rewritten."""
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for the user's own prompt."""


@rule(
    "autointerp",
    but=(
        # Replies are cached by request, so repeating a job after an edit of these costs no call.
        *("autointerp/llm/serve_gguf.py", "autointerp/llm/session.py"),
        *("autointerp/explain.py", "autointerp/explainers", "autointerp/prompts/explain.txt"),
        *("autointerp/local_model.py", "autointerp/scorers", "autointerp/explain_and_score.py"),
        "autointerp/imported",
    ),
    things=lambda config, wildcards: _scoring_files(config, wildcards),
)
def score_latents(config: Config, wildcards: Wildcards) -> ScoreLatentsParams:
    """Build params for an SAE's latents, their explainer and their scorer."""
    explainer, name = wildcards["explainer"], wildcards["scorer"]
    scorer = config.scorers[name].for_job(config.writer(explainer))
    made = tuple(_made_by_judge(config, explainer, name))
    return ScoreLatentsParams(
        seed=config.seed,
        keys=CellKeys.of(wildcards),
        scorer=scorer,
        judge=config.asked(explainer, name),
        compute=None if scorer.model_in_job is None else config.compute,
        explainers=made,
        local_files=_own_files([*made, scorer], [wildcards]),
    )


def _own_files(used: Iterable[Kind], cells: Iterable[Wildcards]) -> tuple[str, ...]:
    """Return stamps of the user's own files that explainers and scorers read, such as a prompt.

    Raises:
        UserError: a file of one cell is missing.
    """
    used, cells = list(used), list(cells)
    files = dict.fromkeys(path for kind in used for keys in cells for path in kind.own_files(keys))
    return tuple(dict.fromkeys(stamp for path in files for stamp in path_stamps(path)))


def check_imported(config: Config) -> None:
    """Refuse one file for several cells.

    This needs the whole study, which no job's params have.

    Raises:
        UserError: names the section.
    """
    named: dict[str, Kind] = {f"explainers.{name}": e for name, e in config.explainers.items()}
    named |= {f"scorers.{name}": scorer for name, scorer in config.scorers.items()}
    for where, section in named.items():
        if isinstance(section, Imported):
            section.check_cells(sae_cells(config), f"config: {where}")


def _made_by_judge(config: Config, explainer: str, scorer: str) -> Iterator[Explainer]:
    """Yield the explainers that a job of `score_latents` runs itself, each on the previous output.

    None for a pair that asks nobody, which has no such job, or if a language model explains.
    """
    if explainer != NO_EXPLAINER and not is_free(config, explainer, scorer):
        chain = [explainer, config.explainers[explainer].exchanges]
        for name in reversed(chain):
            if name is not None and config.explainers[name].endpoint is None:
                yield config.explainers[name]


def _scoring_files(config: Config, wildcards: Wildcards) -> Iterator[Path]:
    """Yield the code that only some jobs of `score_latents` run."""
    explainer, scorer = wildcards["explainer"], wildcards["scorer"]
    yield from thing_files(SCORERS, config.scorers[scorer].name)
    made = [section.name for section in _made_by_judge(config, explainer, scorer)]
    if made:
        folders = ("autointerp/explain.py", "autointerp/imported", "corpus/token_text.py")
        yield from files_in(folders)
        yield from thing_files(EXPLAINERS, *made)


class FreeScorer(Section):
    """A scorer that judges one explainer's explanations by a formula."""

    explainer: str
    """Key of `explainers`, or `none`."""
    name: str
    """Key of `scorers`."""
    scorer: AnyScorer


class ExplainAndScoreParams(Section):
    """What `nullsae explain_and_score` takes."""

    seed: NonNegativeInt
    keys: ModelKeys
    cells: tuple[SaeKeys, ...]
    """The SAEs whose latents are explained."""
    explainers: dict[str, AnyExplainer]
    """By name; those that write come before those that exchange."""
    scorers: tuple[FreeScorer, ...]
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for the user's own files."""

    def cell_keys(self, cell: SaeKeys) -> CellKeys:
        """Return all keys of one of the SAEs."""
        return CellKeys(**self.keys.model_dump(), **cell.model_dump())


def _free_files(config: Config, wildcards: Wildcards) -> Iterator[Path]:
    writer = wildcards.get("writer")
    explainers = [config.explainers[name].name for name in free_explainers(config, writer)]
    scorers = [config.scorers[name].name for _, name in free_pairs(config, writer)]
    yield from thing_files(EXPLAINERS, *explainers)
    yield from thing_files(SCORERS, *scorers)


@rule(
    *("autointerp/examples.py", "autointerp/explain.py", "autointerp/score.py"),
    *("autointerp/explain_and_score.py", "autointerp/imported", "corpus/token_text.py"),
    things=_free_files,
)
def explain_and_score(config: Config, wildcards: Wildcards) -> ExplainAndScoreParams:
    """Build params for all SAEs of a model, and the explainers and scorers without endpoints.

    Explainers that exchange what a language model wrote have another job, with that explainer's
    name as `writer`.
    """
    keys, writer = ModelKeys.of(wildcards), wildcards.get("writer")
    own = of_model(wildcards).items()
    explainers = {name: config.explainers[name] for name in free_explainers(config, writer)}
    scorers = [
        FreeScorer(explainer=e, name=s, scorer=config.scorers[s].for_job(config.writer(e)))
        for e, s in free_pairs(config, writer)
    ]
    mine = [cell for cell in sae_cells(config) if own <= cell.items()]
    used: list[Kind] = [*explainers.values(), *(judging.scorer for judging in scorers)]
    return ExplainAndScoreParams(
        seed=config.seed,
        keys=keys,
        cells=tuple(map(SaeKeys.of, mine)),
        explainers=explainers,
        scorers=tuple(scorers),
        local_files=_own_files(used, mine),
    )


def paid_writer(config: Config, explainer: str) -> str | None:
    """Return the explainer that asks a model for what this one writes or exchanges, or None."""
    if explainer == NO_EXPLAINER:
        return None
    chain = (explainer, config.explainers[explainer].exchanges)
    return next((n for n in chain if n and config.explainers[n].endpoint is not None), None)


def free_explainers(config: Config, writer: str | None = None) -> list[str]:
    """Return explainers without an endpoint, those that write before those that exchange.

    Args:
        config: the study.
        writer: the explainer with an endpoint whose explanations they exchange; None for those that
            need no endpoint at all.
    """
    found = [
        name
        for name, explainer in config.explainers.items()
        if explainer.endpoint is None and paid_writer(config, name) == writer
    ]
    return sorted(found, key=lambda name: config.explainers[name].exchanges is not None)


def free_pairs(config: Config, writer: str | None = None) -> list[tuple[str, str]]:
    """Return pairs of explainers and scorers that need neither an endpoint nor a model.

    `writer` is as in `free_explainers`.
    """
    return [
        (explainer, scorer)
        for explainer, scorer in config.scored_pairs()
        if is_free(config, explainer, scorer) and paid_writer(config, explainer) == writer
    ]


def is_free(config: Config, explainer: str, scorer: str) -> bool:
    """Return whether a scorer judges these explanations without an endpoint or a model."""
    asked = config.asked(explainer, scorer)
    return asked is None and config.scorers[scorer].model_in_job is None


def asks(config: Config, rule: str, wildcards: Wildcards) -> bool:
    """Return whether a job of `explain_latents` or `score_latents` asks an endpoint."""
    explainer = wildcards["explainer"]
    if rule == "explain_latents":
        return config.explainers[explainer].endpoint is not None
    return config.asked(explainer, wildcards["scorer"]) is not None


def is_shared_out(config: Config, rule: str, wildcards: Wildcards) -> bool:
    """Return whether several jobs may share an SAE's latents, as the jobs use a language model."""
    scorer = config.scorers[wildcards["scorer"]] if rule == "score_latents" else None
    runs_one = scorer is not None and scorer.model_in_job is not None
    return runs_one or asks(config, rule, wildcards)
