"""A language model as the judge: questions about windows, and what its answers say."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from nullsae.autointerp.examples import Examples, Ints
from nullsae.autointerp.llm.client import LanguageModel, Request
from nullsae.autointerp.llm.session import Asked
from nullsae.autointerp.marking import mark, window_texts
from nullsae.autointerp.prompting import Prompt, check_prompt, load_prompt, one_line
from nullsae.autointerp.replies import Judgement, choice, judgements
from nullsae.config.endpoints import Endpoint
from nullsae.config.scorers import DetectionScorer, FuzzingScorer, IntruderScorer
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.autointerp import ScoreLatentsParams

# Questions about the same windows, the first one included, before they count as failed.
MAX_ATTEMPTS = 3
# Length of an answer: its frame, and a number, a label and punctuation per window.
FRAME_TOKENS, WINDOW_TOKENS = 32, 10

Answer = Judgement | None


def ask_about_windows(
    params: ScoreLatentsParams,
    scorer: DetectionScorer | FuzzingScorer,
    examples: Examples,
    explained: pa.Table,
    tokenizer: Tokenizer,
    judge: Endpoint,
    asked: Asked,
) -> tuple[list[Answer], str]:
    """Ask of each window whether the explanation fits it, several windows in one question.

    The windows of a latent come in a random order, the same for every explainer, and never share
    a question with another latent's. Latents that have no explanation are not asked about.

    Args:
        params: the rule's params.
        scorer: detection or fuzzing.
        examples: the windows.
        explained: the table `explanations`, sorted by latent.
        tokenizer: the corpus' tokenizer.
        judge: whom to ask.
        asked: how.

    Returns:
        What was said of each example (None: nothing that can be used), and the prompt's hash.

    Raises:
        UserError: the endpoint or the prompt's file cannot be used.
    """
    prompt = load_prompt(scorer.kind, scorer.prompt)
    check_prompt(prompt, scorer.prompt, explanation="", windows=[""])
    texts = example_texts(examples, tokenizer)
    questions = []
    for latent, text in zip(
        explained["latent"].to_pylist(), explained["explanation"].to_pylist(), strict=True
    ):
        if text is not None:
            order = _shuffled(np.flatnonzero(examples.latent == latent), params, latent)
            size = scorer.windows_per_prompt
            questions += [(text, order[i : i + size]) for i in range(0, len(order), size)]
    limit = scorer.max_completion_tokens

    def work(model: LanguageModel) -> list[Coroutine[Any, Any, list[Answer]]]:
        return [
            _ask_labels(model, prompt, text, [texts[i] for i in rows], limit)
            for text, rows in questions
        ]

    answers: list[Answer] = [None] * len(texts)
    for (_, rows), said in zip(questions, asked.all(judge, work, len(questions)), strict=True):
        for row, one in zip(rows, said, strict=True):
            answers[row] = one
    return answers, prompt.hash


async def _ask_labels(
    model: LanguageModel, prompt: Prompt, explanation: str, windows: list[str], limit: int | None
) -> list[Answer]:
    """Ask about some windows; ask again about those without an answer."""
    answers: list[Answer] = [None] * len(windows)
    unanswered, attempt = list(range(len(windows))), 1
    for _ in range(MAX_ATTEMPTS):
        n = len(unanswered)
        messages = prompt.messages(
            attempt, explanation=explanation, windows=[windows[i] for i in unanswered]
        )
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


def ask_for_intruders(
    params: ScoreLatentsParams,
    scorer: IntruderScorer,
    examples: Examples,
    tokenizer: Tokenizer,
    judge: Endpoint,
    asked: Asked,
) -> tuple[Ints, list[Answer], str]:
    """Ask which of a few windows does not belong to a latent.

    A question shows `active_per_task` active windows of one quantile and one silent window, at a
    random place. Each window is shown at most once, so a latent with few windows gets fewer
    questions. The answer says of each window how likely it is active, so that chance is an AUROC
    of 1/2 as in the other scorers.

    Returns:
        Rows of `examples` that were shown, ascending; what was said of each; the prompt's hash.

    Raises:
        UserError: the endpoint or the prompt's file cannot be used.
    """
    prompt = load_prompt("intruder", scorer.prompt)
    check_prompt(prompt, scorer.prompt, windows=[""])
    texts = example_texts(examples, tokenizer)
    tasks = [
        task
        for latent in np.unique(examples.latent).tolist()
        for task in intruder_tasks(params, scorer, examples, latent)
    ]

    def work(model: LanguageModel) -> list[Coroutine[Any, Any, dict[int, Judgement] | None]]:
        limit = scorer.max_completion_tokens
        return [_ask_choice(model, prompt, [texts[i] for i in rows], limit) for rows in tasks]

    answers: dict[int, Answer] = {}
    for rows, said in zip(tasks, asked.all(judge, work, len(tasks)), strict=True):
        for number, row in enumerate(rows.tolist(), 1):
            answers[row] = None if said is None else said[number]
    chosen = sorted(answers)
    return np.array(chosen, np.int64), [answers[row] for row in chosen], prompt.hash


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


def example_texts(examples: Examples, tokenizer: Tokenizer) -> list[str]:
    """Each window as one line, with its marks."""
    bounds = list(zip(examples.starts[:-1], examples.starts[1:], strict=True))
    shown = window_texts(tokenizer, [examples.tokens[a:b] for a, b in bounds])
    return [
        one_line(mark(window, examples.marked[a:b]))
        for window, (a, b) in zip(shown, bounds, strict=True)
    ]


def _shuffled(rows: Ints, params: ScoreLatentsParams, latent: int) -> Ints:
    generator = numpy_generator(params.seed, "question_order", *params.keys.parts(), latent)
    return generator.permutation(rows)


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
