"""What scorers share that ask a language model about windows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import PositiveInt

from nullsae.autointerp import prompting
from nullsae.autointerp.examples import Examples, Flags, Floats, Ints
from nullsae.autointerp.llm.messages import Request, object_schema
from nullsae.autointerp.marking import Shown, shown_examples
from nullsae.autointerp.prompting import (
    MAX_ATTEMPTS,
    Notation,
    Prompt,
    load_prompt,
    one_line,
)
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer
from nullsae.config.scorers import Scorer
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator
from nullsae.core.registry import lazy

if TYPE_CHECKING:
    from nullsae.autointerp import replies
    from nullsae.autointerp.llm.client import LanguageModel
else:
    replies = lazy("nullsae.autointerp.replies")

# Length of an answer: its frame, and a number, a label and punctuation per window.
FRAME_TOKENS, WINDOW_TOKENS = 32, 10

Answer: TypeAlias = "replies.Judgement | None"


class AskingScorer(Scorer):
    """Base of scorers that ask a language model."""

    judge: Endpoint | None = None
    """The model that judges explanations that are text; by default the one that wrote them.
    Explanations of kind `lexical` are judged by their token statistics, without a model, unless
    they are `judged_by: text`."""
    windows_per_prompt: PositiveInt = 5
    """Windows in one question to a language model. More are cheaper; `docs/judges.md` says by how
    much."""
    max_completion_tokens: PositiveInt | None = None
    """Maximum length of an answer, by default what the windows need; a model that reasons needs
    more."""
    prompt: str | None = None
    """File that replaces nullsae's own prompt in `autointerp/prompts`."""

    @property
    def endpoint(self) -> Endpoint | None:
        return self.judge

    def judges(self, explainer: str, writer: Explainer) -> bool:
        # Explanations made elsewhere have their own scores, and no model to ask.
        return super().judges(explainer, writer) and bool(self.judge or not writer.made_elsewhere)

    def asked(self, writer: Explainer | None) -> Endpoint | None:
        assert writer is not None
        if writer.judged_by_formula:
            return None
        judge = self.judge or writer.judge
        if judge is None:
            raise ValueError(
                f"judge: missing; explanations of kind {writer.name} are text, which a language "
                f"model must judge, and no model wrote them"
            )
        return judge

    def for_job(self, writer: Explainer | None) -> Self:
        if self.asked(writer) is not None:
            return self.model_copy(update={"judge": None})
        # A formula judges token statistics, so settings for asking a model do not matter.
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
                "--params: judge: missing; these explanations are text, which needs a judge"
            )
        if not len(job.examples.latent):
            return Judged(np.empty(0), [])
        marked = job.examples.marked
        shown = marked if self.marks_above is not None else np.ones_like(marked)
        probability = judge_by_tokens(job.examples, job.explained, shown)
        return Judged(probability, ["statistics"] * len(probability))

    def _ask(self, job: ScoreJob, judge: Endpoint) -> Judged:
        """Ask for each window whether the explanation fits it, several windows per question.

        The windows of a latent come in a random order, the same for every explainer, and latents
        never share a question. Latents without an explanation are skipped. Explanations written
        elsewhere are quoted as JSON, so that they cannot escape.
        """
        examples, tokenizer = job.examples, job.tokenizer
        prompt = load_prompt(self.name, self.prompt)
        prompt.check(explanation="", windows=[""])
        shown = shown_examples(tokenizer, examples)
        questions = []
        is_quoted = any(explainer.made_elsewhere for explainer in job.params.explainers)
        size, limit = self.windows_per_prompt, self.max_completion_tokens
        latents, explanations = (job.explained[n].to_pylist() for n in ("latent", "explanation"))
        for latent, text in zip(latents, explanations, strict=True):
            if text is not None:
                keys = ("question_order", *job.params.keys.parts(), latent)
                generator = numpy_generator(job.params.seed, *keys)
                text = one_line(text)
                text = json.dumps(text, ensure_ascii=False) if is_quoted else text
                order = generator.permutation(np.flatnonzero(examples.latent == latent))
                questions += [(text, order[i : i + size]) for i in range(0, len(order), size)]
        answers: list[Answer] = [None] * len(shown)
        said_of_all = job.session.all(
            judge,
            lambda model: [
                _ask_labels(model, prompt, text, [shown[i] for i in rows], limit)
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
    """Estimate questions that show `n_shown` windows in total, with the prompt of a kind."""
    fixed = prompting.prompt_tokens(kind, path) + prompting.EXPLANATION_TOKENS
    each = counts.window_tokens + prompting.TOKENS_AROUND_WINDOW
    return Questions(calls, calls * fixed + n_shown * each, calls * answer_tokens)


def judged_by_answers(answers: list[Answer], judge: Endpoint, prompt: Prompt) -> Judged:
    """Convert a language model's answers, one per example."""
    probability = np.array([np.nan if a is None else a.probability for a in answers], np.float64)
    evidence = [None if a is None else "label" if a.is_label else "logprobs" for a in answers]
    return Judged(probability, evidence, judge.model, prompt.hash)


async def _ask_labels(
    model: LanguageModel,
    prompt: Prompt,
    explanation: str,
    windows: list[tuple[Shown, Flags]],
    limit: int | None,
) -> list[Answer]:
    """Ask about some windows; ask again about those without an answer."""
    answers: list[Answer] = [None] * len(windows)
    unanswered, attempt = list(range(len(windows))), 1
    for _ in range(MAX_ATTEMPTS):
        n = len(unanswered)
        notation = Notation.of([windows[i] for i in unanswered])
        texts = [notation.window(*windows[i]) for i in unanswered]
        messages = prompt.messages(attempt, notation, explanation=explanation, windows=texts)
        length = limit or FRAME_TOKENS + WINDOW_TOKENS * n
        schema = object_schema({str(i): [0, 1] for i in range(1, n + 1)})
        reply = await model.ask(Request(messages, length, schema, logprobs=True))
        if reply is None:
            break
        said = replies.judgements(reply, n)
        for number, judgement in said.items():
            answers[unanswered[number - 1]] = judgement
        unanswered = [row for i, row in enumerate(unanswered, 1) if i not in said]
        if not unanswered:
            break
        # With fewer windows, the question differs; with the same ones, it needs other words, or
        # the same model answers the same.
        attempt = attempt + 1 if len(unanswered) == n else 1
    return answers


def judge_by_tokens(examples: Examples, explained: pa.Table, shown: Flags) -> Floats:
    """Return the largest probability of firing over the shown positions of each window.

    A position has the probability of its pair (the token before it in the window, marked or not,
    and its own token), else that of its token, else the explanation's base probability: the first
    one that the explanation knows. `explained` is sorted by latent and has every latent of the
    examples; at least one position per window is `shown`. Returns float64 [n_examples].
    """
    at = np.flatnonzero(shown)
    before = np.roll(examples.tokens, 1)
    before[examples.starts[:-1]] = -1  # nothing is before a window's first token
    token, previous = examples.tokens[at], before[at]
    row = np.searchsorted(explained["latent"].to_numpy(), examples.latent)
    row = np.repeat(row, examples.n_tokens)[at]
    row_of_known, known, p_token = _entries(explained, "token_ids", "token_probabilities")
    row_of_pair, second, p_pair = _entries(explained, "pair_token_ids", "pair_probabilities")
    first = explained["pair_previous_ids"].combine_chunks().flatten().to_numpy()

    # A key combines a row or an index with one id, never two ids: int64 is always enough.
    stride = 1 + max(int(ids.max(initial=0)) for ids in (examples.tokens, known, first, second))
    known_key, pair_head = row_of_known * stride + known, row_of_pair * stride + second
    heads = np.unique(np.concatenate([known_key, pair_head]))
    # In float32 like the statistics, so that a base rate ties with a token at that rate.
    base = explained["base_probability"].to_numpy().astype(np.float32)
    of_head = base[heads // stride]
    of_head[_find(heads, known_key)] = p_token
    head = _find(heads, row * stride + token)
    probability = np.where(head >= 0, np.append(of_head, np.float32(0))[head], base[row])

    pair_key = _find(heads, pair_head) * stride + first
    order = np.argsort(pair_key, kind="stable")  # linear if they ascend, as they usually do
    pair = _find(pair_key[order], np.where(previous < 0, -1, head * stride + previous))
    probability = np.where(pair >= 0, np.append(p_pair[order], np.float32(0))[pair], probability)

    of_position = np.full(len(shown), -np.inf, dtype=np.float32)
    of_position[at] = probability
    return np.maximum.reduceat(of_position, examples.starts[:-1]).astype(np.float64)


def _entries(explained: pa.Table, ids: str, values: str) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Return row, id and value of each entry of two list columns, concatenated."""
    lists = explained[ids].combine_chunks()
    row = np.repeat(np.arange(explained.num_rows), lists.value_lengths().to_numpy())
    numbers = explained[values].combine_chunks().flatten().to_numpy()
    return row, lists.flatten().to_numpy().astype(np.int64), numbers


def _find(keys: Ints, wanted: Ints) -> Ints:
    """Return the index of each wanted key among ascending keys >= 0; -1 if missing."""
    place = np.searchsorted(keys, wanted)
    closed = np.append(keys, np.iinfo(np.int64).min)  # a search past the end finds nothing
    return np.where(closed[place] == wanted, place, -1)
