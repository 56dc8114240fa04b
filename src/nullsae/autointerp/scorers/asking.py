"""What scorers share that ask a language model about windows, and how it is asked."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import PositiveInt

from nullsae.autointerp import prompting
from nullsae.autointerp.examples import Examples, Ints
from nullsae.autointerp.llm.messages import Request
from nullsae.autointerp.marking import mark, window_texts
from nullsae.autointerp.prompting import MAX_ATTEMPTS, Prompt, check_prompt, load_prompt, one_line
from nullsae.autointerp.replies import Judgement, judgements
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.autointerp.token_statistics import judge_by_tokens
from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer
from nullsae.config.scorers import Scorer
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from nullsae.autointerp.llm.client import LanguageModel

# Length of an answer: its frame, and a number, a label and punctuation per window.
FRAME_TOKENS, WINDOW_TOKENS = 32, 10

Answer = Judgement | None


class AskingScorer(Scorer):
    """What scorers that ask a language model share."""

    judge: Endpoint | None = None
    """Who judges explanations that are text; by default the model that wrote them. Explanations
    of kind `lexical` are judged by their token statistics, without a model."""
    windows_per_prompt: PositiveInt = 5
    """Windows in one question to a language model. More are cheaper; `docs/llm.md` measures what
    they cost in quality."""
    max_completion_tokens: PositiveInt | None = None
    """Length of an answer, by default what the windows need; a model that reasons needs more."""
    prompt: str | None = None
    """File to use in the place of nullsae's own prompt; `autointerp/prompts` has that."""

    @property
    def endpoint(self) -> Endpoint | None:
        return self.judge

    def asked(self, writer: Explainer | None) -> Endpoint | None:
        assert writer is not None
        if writer.has_statistics:
            return None
        judge = self.judge or writer.judge
        if judge is None:
            raise ValueError(
                f"judge: missing; explanations of kind {writer.name} are text without statistics, "
                f"and no model wrote them"
            )
        return judge

    def for_job(self, writer: Explainer | None) -> Self:
        if self.asked(writer) is not None:
            return self.model_copy(update={"judge": None})
        # Token statistics are judged by a formula: how a model is asked is no business of it.
        default = {
            name: field.get_default()
            for name, field in AskingScorer.model_fields.items()
            if name not in Scorer.model_fields
        }
        return self.model_copy(update=default)

    def questions(self, counts: WindowCounts) -> Questions:
        size = self.windows_per_prompt
        calls = sum(-(-n // size) for n in counts.score)
        answer = FRAME_TOKENS // 2 + WINDOW_TOKENS // 2 * size
        return questions_about_windows(
            calls, sum(counts.score), counts, answer, self.name, self.prompt
        )

    def predict(self, job: ScoreJob) -> Judged:
        if job.params.judge is not None:
            return self._ask(job, job.params.judge)
        if job.explained["base_probability"].null_count:
            raise UserError(
                "--params: judge is missing, and these explanations are text without statistics"
            )
        if not len(job.examples.latent):
            return Judged(np.empty(0), [])
        marked = job.examples.marked
        shown = marked if self.marks_above is not None else np.ones_like(marked)
        probability = judge_by_tokens(job.examples, job.explained, shown)
        return Judged(probability, ["statistics"] * len(probability))

    def _ask(self, job: ScoreJob, judge: Endpoint) -> Judged:
        """Ask of each window whether the explanation fits it, several windows in one question.

        The windows of a latent come in a random order, the same for every explainer, and never
        share a question with another latent's. Latents that have no explanation are not asked
        about.
        """
        examples, tokenizer = job.examples, job.tokenizer
        prompt = load_prompt(self.name, self.prompt)
        check_prompt(prompt, self.prompt, explanation="", windows=[""])
        texts = example_texts(examples, tokenizer)
        questions = []
        size, limit = self.windows_per_prompt, self.max_completion_tokens
        latents, explanations = (job.explained[n].to_pylist() for n in ("latent", "explanation"))
        for latent, text in zip(latents, explanations, strict=True):
            if text is not None:
                keys = ("question_order", *job.params.keys.parts(), latent)
                generator = numpy_generator(job.params.seed, *keys)
                order = generator.permutation(np.flatnonzero(examples.latent == latent))
                questions += [(text, order[i : i + size]) for i in range(0, len(order), size)]
        answers: list[Answer] = [None] * len(texts)
        said_of_all = job.session.all(
            judge,
            lambda model: [
                _ask_labels(model, prompt, text, [texts[i] for i in rows], limit)
                for text, rows in questions
            ],
            len(questions),
        )
        for (_, rows), said in zip(questions, said_of_all, strict=True):
            for row, one in zip(rows, said, strict=True):
                answers[row] = one
        return judged_by_answers(answers, judge, prompt)


def questions_about_windows(
    calls: int, n_shown: int, counts: WindowCounts, answer_tokens: int, kind: str, path: str | None
) -> Questions:
    """What questions amount to that show so many windows in all, by the prompt of a kind."""
    fixed = prompting.prompt_tokens(kind, path) + prompting.EXPLANATION_TOKENS
    each = counts.window_tokens + prompting.TOKENS_AROUND_WINDOW
    return Questions(calls, calls * fixed + n_shown * each, calls * answer_tokens)


def judged_by_answers(
    answers: list[Answer], judge: Endpoint, prompt: Prompt, rows: Ints | None = None
) -> Judged:
    """What a language model said; `rows` as in `Judged`."""
    probability = np.array([np.nan if a is None else a.probability for a in answers], np.float64)
    evidence = [None if a is None else "label" if a.is_label else "logprobs" for a in answers]
    return Judged(probability, evidence, judge.model, prompt.hash, rows)


async def _ask_labels(
    model: LanguageModel, prompt: Prompt, explanation: str, windows: list[str], limit: int | None
) -> list[Answer]:
    """Ask about some windows; ask again about those without an answer."""
    answers: list[Answer] = [None] * len(windows)
    unanswered, attempt = list(range(len(windows))), 1
    for _ in range(MAX_ATTEMPTS):
        n = len(unanswered)
        shown = [windows[i] for i in unanswered]
        messages = prompt.messages(attempt, explanation=explanation, windows=shown)
        length = limit or FRAME_TOKENS + WINDOW_TOKENS * n
        reply = await model.ask(Request(messages, length, labels_schema(n), logprobs=True))
        if reply is None:
            break
        said = judgements(reply, n)
        for number, judgement in said.items():
            answers[unanswered[number - 1]] = judgement
        unanswered = [row for i, row in enumerate(unanswered, 1) if i not in said]
        if not unanswered:
            break
        # Fewer windows are another question; the same ones need other words, or the same model
        # says the same again.
        attempt = attempt + 1 if len(unanswered) == n else 1
    return answers


def example_texts(examples: Examples, tokenizer: Tokenizer) -> list[str]:
    """Each window as one line, with its marks."""
    bounds = list(zip(examples.starts[:-1], examples.starts[1:], strict=True))
    shown = window_texts(tokenizer, [examples.tokens[a:b] for a, b in bounds])
    return [
        one_line(mark(window, examples.marked[a:b]))
        for window, (a, b) in zip(shown, bounds, strict=True)
    ]


@cache
def labels_schema(n_windows: int) -> dict[str, Any]:
    """JSON schema of `{"1": 0, "2": 1, ...}`."""
    numbers = [str(i) for i in range(1, n_windows + 1)]
    return {
        "type": "object",
        "properties": {number: {"type": "integer", "enum": [0, 1]} for number in numbers},
        "required": numbers,
        "additionalProperties": False,
    }
