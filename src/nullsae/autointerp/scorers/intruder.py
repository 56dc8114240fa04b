"""Which of a few windows does not belong to a latent?"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from nullsae.autointerp.examples import Examples, Ints
from nullsae.autointerp.llm.messages import Request
from nullsae.autointerp.prompting import Prompt, check_prompt, load_prompt
from nullsae.autointerp.replies import Judgement, choice
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.autointerp.scorers.asking import (
    FRAME_TOKENS,
    MAX_ATTEMPTS,
    Answer,
    example_texts,
    judged_by_answers,
    questions_about_windows,
)
from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer
from nullsae.config.latents import SilentKind
from nullsae.config.scorers import Scorer
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.autointerp import ScoreLatentsParams

if TYPE_CHECKING:
    from nullsae.autointerp.llm.client import LanguageModel


class IntruderScorer(Scorer):
    """Which of a few windows does not belong? Says how alike a latent's windows are, without any
    explanation.
    """

    name: ClassVar[str] = "intruder"
    position: ClassVar[int] = 2
    needs_explanations: ClassVar[bool] = False
    relative_seconds: ClassVar[float] = 5.0

    kind: Literal["intruder"]
    judge: Endpoint
    """Who is asked."""
    n_tasks: PositiveInt = 25
    """Questions per latent, at most: each quantile holds so many active windows."""
    active_per_task: Annotated[int, Field(ge=2)] = 4
    """Active windows of one quantile beside the one silent window."""
    negatives: SilentKind = "random"
    """The silent windows to draw intruders from; one of `latents.silent_windows`."""
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked when it is active above this share of its window's maximum. Tokens of the
    intruder are marked at random, as many as in an active window."""
    max_completion_tokens: PositiveInt | None = None
    """Length of an answer, by default what the windows need; a model that reasons needs more."""
    prompt: str | None = None
    """File to use in the place of nullsae's own prompt; `autointerp/prompts` has that."""

    @property
    def marks_above(self) -> float:
        return self.mark_threshold

    @property
    def endpoint(self) -> Endpoint:
        return self.judge

    @property
    def text(self) -> str:
        return (
            f"{self.judge.model} is shown {self.active_per_task} active windows and one other, "
            f"and says which does not belong; no explanation is used."
        )

    def asked(self, writer: Explainer | None) -> Endpoint:
        return self.judge

    def questions(self, counts: WindowCounts) -> Questions:
        size = self.active_per_task
        calls = sum(min(self.n_tasks, n // size) for n in counts.score_active)
        return questions_about_windows(
            calls, calls * (size + 1), counts, FRAME_TOKENS // 2, self.name, self.prompt
        )

    def predict(self, job: ScoreJob) -> Judged:
        """Ask which of a few windows does not belong to a latent.

        A question shows `active_per_task` active windows of one quantile and one silent window, at
        a random place. Each window is shown at most once, so a latent with few windows gets fewer
        questions. The answer says of each window how likely it is active, so that chance is an
        AUROC of 1/2 as in the other scorers.
        """
        examples, judge = job.examples, job.params.judge
        if judge is None:
            raise UserError("--params: judge is missing, and scorer.kind intruder asks one")
        tokenizer = job.tokenizer
        prompt = load_prompt("intruder", self.prompt)
        check_prompt(prompt, self.prompt, windows=[""])
        texts = example_texts(examples, tokenizer)
        tasks = [
            task
            for latent in np.unique(examples.latent).tolist()
            for task in intruder_tasks(job.params, self, examples, latent)
        ]

        def work(model: LanguageModel) -> list[Coroutine[Any, Any, dict[int, Judgement] | None]]:
            limit = self.max_completion_tokens
            return [_ask_choice(model, prompt, [texts[i] for i in rows], limit) for rows in tasks]

        answers: dict[int, Answer] = {}
        for rows, said in zip(tasks, job.session.all(judge, work, len(tasks)), strict=True):
            for number, row in enumerate(rows.tolist(), 1):
                answers[row] = None if said is None else said[number]
        chosen = sorted(answers)
        return judged_by_answers(
            [answers[row] for row in chosen], judge, prompt, np.array(chosen, np.int64)
        )


def intruder_tasks(
    params: ScoreLatentsParams, scorer: IntruderScorer, examples: Examples, latent: int
) -> list[Ints]:
    """The questions about one latent: rows of `examples`, in the order in which they are shown."""
    mine = np.flatnonzero(examples.latent == latent)
    generator = numpy_generator(params.seed, "intruder_tasks", *params.keys.parts(), latent)
    silent = generator.permutation(mine[~examples.active[mine]])
    quantile = np.asarray(examples.quantile.fill_null(-1))
    groups = []
    for which in np.unique(quantile[mine[examples.active[mine]]]):
        rows = generator.permutation(mine[quantile[mine] == which])
        size = scorer.active_per_task
        groups += [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
    tasks = []
    for place, intruder in zip(
        generator.permutation(len(groups))[: scorer.n_tasks], silent, strict=False
    ):
        tasks.append(generator.permutation(np.append(groups[place], intruder)))
    return tasks


async def _ask_choice(
    model: LanguageModel, prompt: Prompt, windows: list[str], limit: int | None
) -> dict[int, Judgement] | None:
    n = len(windows)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        messages = prompt.messages(attempt, windows=windows)
        schema = choice_schema(n)
        reply = await model.ask(Request(messages, limit or FRAME_TOKENS, schema, logprobs=True))
        if reply is None:
            return None
        if said := choice(reply, n):
            return said
    return None


@cache
def choice_schema(n_windows: int) -> dict[str, Any]:
    """JSON schema of `{"intruder": 3}`."""
    numbers = list(range(1, n_windows + 1))
    return {
        "type": "object",
        "properties": {"intruder": {"type": "integer", "enum": numbers}},
        "required": ["intruder"],
        "additionalProperties": False,
    }
