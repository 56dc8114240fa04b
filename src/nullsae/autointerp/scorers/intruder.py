"""Which of a few windows does not belong to a latent?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from nullsae.autointerp.examples import Examples, Floats, Ints, wrong_marks
from nullsae.autointerp.llm.messages import object_schema
from nullsae.autointerp.marking import shown_examples
from nullsae.autointerp.prompting import Notation, load_prompt
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.autointerp.scorers import asking
from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer
from nullsae.config.latents import SilentKind
from nullsae.config.scorers import Scorer
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator
from nullsae.core.registry import lazy
from nullsae.jobs.autointerp import ScoreLatentsParams

if TYPE_CHECKING:
    from nullsae.autointerp import replies
else:
    replies = lazy("nullsae.autointerp.replies")

# The frequency judge distinguishes windows if their marked tokens differ by a factor of two.
TOLD_OCTAVES = 1.0


class IntruderScorer(Scorer):
    """Which of a few windows does not belong? Measures how alike a latent's windows are, without
    any explanation.
    """

    name: ClassVar[str] = "intruder"
    position: ClassVar[int] = 2
    needs_explanations: ClassVar[bool] = False
    has_placebo: ClassVar[bool] = True
    relative_seconds: ClassVar[float] = 5.0

    kind: Literal["intruder"]
    judge: Endpoint
    """The model to ask."""
    n_tasks: PositiveInt = 25
    """Questions per latent, at most: each quantile has this many active windows."""
    active_per_task: Annotated[int, Field(ge=2)] = 4
    """Active windows of one quantile, in addition to the silent window."""
    negatives: SilentKind = "random"
    """The silent windows to draw intruders from; one of `latents.silent_windows`."""
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked if it is active above this share of its window's maximum. The intruder has
    as many marks as an active window, on tokens of similar frequency."""
    max_completion_tokens: PositiveInt | None = None
    """Maximum length of an answer, by default what the windows need; a model that reasons needs
    more."""
    prompt: str | None = None
    """File that replaces nullsae's own prompt in `autointerp/prompts`."""

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
        a random position, marked like another active window of the quantile (`wrong_marks`). Each
        window is shown at most once, so a latent with few windows gets fewer questions. The answer
        gives each window's probability of being active, so that chance is an AUROC of 1/2 as in the
        other scorers. The placebo is `frequency_judge`'s answer to the same questions.
        """
        judge = job.params.judge
        if judge is None:
            raise UserError("--params: judge: missing; a scorer of kind intruder needs one")
        prompt = load_prompt("intruder", self.prompt)
        prompt.check(windows=[""])
        tasks, examples = marked_tasks(job.params, self, job.examples)
        shown = shown_examples(job.tokenizer, examples)
        n = self.active_per_task + 1
        length = self.max_completion_tokens or asking.FRAME_TOKENS
        said_of_all = job.session.all(
            judge,
            lambda model: [
                prompt.ask(
                    model,
                    lambda reply: replies.choice(reply, n),
                    length,
                    object_schema({"intruder": list(range(1, n + 1))}),
                    notation,
                    windows=[notation.window(*shown[i]) for i in rows],
                )
                for rows in (task.rows for task in tasks)
                for notation in [Notation.of([shown[i] for i in rows])]
            ],
            len(tasks),
        )
        answers: dict[int, asking.Answer] = {}
        by_frequency: dict[int, float] = {}
        for task, said in zip(tasks, said_of_all, strict=True):
            frequency = frequency_judge(marked_octaves(examples, task.rows))
            for number, row in enumerate(task.rows.tolist(), 1):
                answers[row] = None if said is None else said[number]
                by_frequency[row] = float(frequency[number - 1])
        chosen = sorted(answers)
        return replace(
            asking.judged_by_answers([answers[row] for row in chosen], judge, prompt),
            examples=examples.take(np.array(chosen, dtype=np.int64)),
            placebo=np.array([by_frequency[row] for row in chosen], dtype=np.float64),
        )


@dataclass(frozen=True)
class Task:
    """A question; windows are rows of `Examples`."""

    rows: Ints
    """In the order in which they are shown."""
    intruder: int
    """The silent one among them."""
    like: Ints
    """The intruder's marks imitate one of these: active windows of the same quantile that are not
    shown, or the shown ones if there are no others."""


def marked_tasks(
    params: ScoreLatentsParams, scorer: IntruderScorer, examples: Examples
) -> tuple[list[Task], Examples]:
    """Return the questions about all latents, and the examples with true and intruders' marks.

    `examples` are marked as by `with_marks`; marks in silent windows are removed.
    """
    latents = np.unique(examples.latent).tolist()
    tasks = [task for n in latents for task in intruder_tasks(params, scorer, examples, n)]
    intruders = np.array([task.intruder for task in tasks], dtype=np.int64)
    like, keys = [task.like for task in tasks], params.keys.parts()
    wrong = wrong_marks(examples, intruders, like, params.seed, "intruder_marks", *keys)
    # Only true marks are on tokens where a latent fires.
    true = examples.marked & (examples.activations > 0)
    return tasks, replace(examples, marked=true | wrong)


def intruder_tasks(
    params: ScoreLatentsParams, scorer: IntruderScorer, examples: Examples, latent: int
) -> list[Task]:
    """Return the questions about one latent."""
    mine = np.flatnonzero(examples.latent == latent)
    generator = numpy_generator(params.seed, "intruder_tasks", *params.keys.parts(), latent)
    silent = generator.permutation(mine[~examples.active[mine]])
    quantile = np.asarray(examples.quantile.fill_null(-1))
    groups, size = [], scorer.active_per_task
    for which in np.unique(quantile[mine[examples.active[mine]]]):
        rows = generator.permutation(mine[quantile[mine] == which])
        for i in range(0, len(rows) - size + 1, size):
            shown = rows[i : i + size]
            others = np.setdiff1d(rows, shown)
            groups.append((shown, others if len(others) else shown))
    places = generator.permutation(len(groups))[: scorer.n_tasks]
    return [
        Task(generator.permutation(np.append(shown, intruder)), int(intruder), like)
        for (shown, like), intruder in zip((groups[i] for i in places), silent, strict=False)
    ]


def marked_octaves(examples: Examples, rows: Ints) -> Floats:
    """Return each window's mean binary log frequency of marked tokens: float64 [n_rows].

    A window without marks has 0, which no token has.
    """
    shown = examples.take(rows)
    total: Floats = np.add.reduceat(np.where(shown.marked, shown.octaves, 0), shown.starts[:-1])
    return total / np.maximum(shown.n_marked, 1)


def frequency_judge(octaves: Floats) -> Floats:
    """Answer a question as a judge who knows only the frequencies of the marked tokens.

    It names the window furthest from the mean of the others. Distances below `TOLD_OCTAVES` do not
    count, because an exactly known frequency would identify the token. Ties are broken at random.

    Args:
        octaves: of each window, as from `marked_octaves`, [n_windows].

    Returns:
        The probability that each is active, 1 - P(named), float64 [n_windows].
    """
    n = len(octaves)
    distance = np.abs(octaves - (octaves.sum() - octaves) / (n - 1))
    distance = np.maximum(distance, TOLD_OCTAVES)
    furthest = np.isclose(distance, distance.max())
    named: Floats = furthest / furthest.sum()
    return 1 - named
