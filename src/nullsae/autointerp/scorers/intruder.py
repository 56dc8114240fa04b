"""Which of a few windows does not belong to a latent?"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from nullsae.autointerp.examples import Examples, Ints
from nullsae.autointerp.llm.messages import object_schema
from nullsae.autointerp.marking import shown_examples
from nullsae.autointerp.prompting import Notation, load_prompt
from nullsae.autointerp.replies import choice
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.autointerp.scorers import asking
from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer
from nullsae.config.latents import SilentKind
from nullsae.config.scorers import Scorer
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.autointerp import ScoreLatentsParams


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
        answer = asking.FRAME_TOKENS // 2
        return asking.questions_about_windows(
            calls, calls * (size + 1), counts, answer, self.name, self.prompt
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
        prompt.check(windows=[""])
        shown = shown_examples(tokenizer, examples)
        tasks = [
            task
            for latent in np.unique(examples.latent).tolist()
            for task in intruder_tasks(job.params, self, examples, latent)
        ]
        n = self.active_per_task + 1
        length = self.max_completion_tokens or asking.FRAME_TOKENS
        said_of_all = job.session.all(
            judge,
            lambda model: [
                prompt.ask(
                    model,
                    lambda reply: choice(reply, n),
                    length,
                    object_schema({"intruder": list(range(1, n + 1))}),
                    notation,
                    windows=[notation.window(*shown[i]) for i in rows],
                )
                for rows in tasks
                for notation in [Notation.of([shown[i] for i in rows])]
            ],
            len(tasks),
        )
        answers: dict[int, asking.Answer] = {}
        for rows, said in zip(tasks, said_of_all, strict=True):
            for number, row in enumerate(rows.tolist(), 1):
                answers[row] = None if said is None else said[number]
        chosen = sorted(answers)
        return asking.judged_by_answers(
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
    groups, size = [], scorer.active_per_task
    for which in np.unique(quantile[mine[examples.active[mine]]]):
        rows = generator.permutation(mine[quantile[mine] == which])
        groups += [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
    places = generator.permutation(len(groups))[: scorer.n_tasks]
    return [
        generator.permutation(np.append(groups[place], intruder))
        for place, intruder in zip(places, silent, strict=False)
    ]
