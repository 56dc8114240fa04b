"""Explanations that a language model writes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from nullsae.autointerp import prompting
from nullsae.autointerp.examples import strong
from nullsae.autointerp.explain import ExplainJob, explained_in_words
from nullsae.autointerp.llm.messages import Reply
from nullsae.autointerp.marking import activation_scale, window_texts
from nullsae.autointerp.prompting import Notation, Prompt, load_prompt, one_line
from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer
from nullsae.core.registry import lazy
from nullsae.tables import of_pool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from nullsae.autointerp import explanation_text
    from nullsae.autointerp.llm.client import LanguageModel
else:
    explanation_text = lazy("nullsae.autointerp.explanation_text")

log = logging.getLogger(__name__)

# Tokens in a window's list of strengths.
TOKENS_OF_STRENGTHS = 12
# Answers that repeat an example of the prompt before a latent is given up.
MAX_REPEATS = 2


class OpenAIExplainer(Endpoint, Explainer):
    """A language model that is shown a latent's active windows."""

    name: ClassVar[str] = "openai"
    position: ClassVar[int] = 1
    shown_first: ClassVar[bool] = True

    kind: Literal["openai"]
    shown_windows: PositiveInt = 40
    """Active windows in the prompt, strongest first; no more than
    `latents.explain_active_windows`."""
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked if it is active above this share of its window's maximum."""
    max_completion_tokens: PositiveInt = 500
    """Maximum length of an answer; a model that reasons needs more."""
    prompt: str | None = None
    """File that replaces nullsae's own prompt in `autointerp/prompts`."""

    @property
    def endpoint(self) -> Endpoint:
        return self

    @property
    def text(self) -> str:
        return f"{self.model} is shown the latent's active windows and says what they share."

    def questions(self, counts: WindowCounts) -> Questions:
        shown = [min(n, self.shown_windows) for n in counts.explain_active]
        each = counts.window_tokens + prompting.TOKENS_AROUND_WINDOW + TOKENS_OF_STRENGTHS
        prompt_tokens = len(shown) * prompting.prompt_tokens("explain", self.prompt)
        answer_tokens = len(shown) * prompting.EXPLANATION_TOKENS
        return Questions(len(shown), prompt_tokens + sum(shown) * each, answer_tokens)

    def explain(self, job: ExplainJob) -> pa.Table:
        """Ask the model to explain each latent from its active explaining windows.

        After an answer without an explanation, the question is asked again in other words, and so
        it is, once, after an answer that repeats an example of the prompt. A latent that never gets
        an explanation has a row with a reason.
        """
        windows, tokenizer = job.windows(), job.tokenizer
        prompt = load_prompt("explain", self.prompt)
        prompt.check(windows=[{"text": "", "strengths": ""}])
        shown = shown_windows(windows, tokenizer, self)
        written = job.session.all(
            self,
            lambda model: [
                _write(model, prompt, mine, self.max_completion_tokens) for mine in shown.values()
            ],
            len(shown),
        )
        if missing := sum(one.text is None for one in written):
            n_repeating = sum(one.text is None and one.n_repeats > 0 for one in written)
            log.warning(
                "%d of %d latents have no explanation; for %d of them the model repeated an "
                "example of the prompt",
                missing,
                len(written),
                n_repeating,
            )
        texts = {latent: one.text for latent, one in zip(shown, written, strict=True)}
        return explained_in_words(
            texts,
            {latent: one.reason for latent, one in zip(shown, written, strict=True)},
            self.model,
            prompt.hash,
            {latent: one.n_repeats for latent, one in zip(shown, written, strict=True)},
        )


@dataclass(frozen=True)
class Written:
    """What a model wrote about a latent."""

    text: str | None
    n_repeats: int
    """Answers that repeated an example of the prompt."""

    @property
    def reason(self) -> str:
        """Why there is no text."""
        if self.n_repeats >= MAX_REPEATS:
            return "the model repeated an example of the prompt"
        return "the model gave no explanation"


async def _write(
    model: LanguageModel, prompt: Prompt, mine: ShownWindows, max_tokens: int
) -> Written:
    """Ask until an explanation comes that does not repeat an example; tolerate one repeat."""
    examples = [
        text
        for one in prompt.examples
        if (text := explanation_text.explanation(Reply(one, (), "stop")))
    ]
    n_repeats = 0

    def read(reply: Reply) -> Written | None:
        nonlocal n_repeats
        text = explanation_text.explanation(reply)
        if text is None:
            return None
        if not explanation_text.repeats(text, examples):
            return Written(text, n_repeats)
        n_repeats += 1
        return Written(None, n_repeats) if n_repeats == MAX_REPEATS else None

    found = await prompt.ask(model, read, max_tokens, notation=mine.notation, windows=mine.windows)
    return found or Written(None, n_repeats)


@dataclass(frozen=True)
class ShownWindows:
    """The windows of one question."""

    windows: list[dict[str, str]]
    """`text` has marks around strongly active tokens; `strengths` gives their activations, from 1
    to 10, the latent's largest activation in the prompt."""
    notation: Notation


def shown_windows(
    windows: pa.Table, tokenizer: Tokenizer, explainer: OpenAIExplainer
) -> dict[int, ShownWindows]:
    """Return the windows of `windows` to show for each latent, strongest first, by latent."""
    windows = of_pool(windows, "explain")
    windows = windows.filter(windows["active"]).sort_by(
        [("latent", "ascending"), ("window", "ascending")]
    )
    latents = windows["latent"].to_numpy()
    rows = [np.asarray(row, np.float32) for row in windows["activations"].to_pylist()]
    peaks = np.array([row.max() for row in rows])
    chosen = {}
    for latent in np.unique(latents).tolist():
        mine = np.flatnonzero(latents == latent)
        order = np.argsort(-peaks[mine], kind="stable")[: explainer.shown_windows]
        chosen[latent] = mine[order].tolist()
    ids = windows["token_ids"].to_pylist()
    # All at once, because each call decodes the pieces of tokens again.
    every = [i for mine in chosen.values() for i in mine]
    texts = dict(zip(every, window_texts(tokenizer, [ids[i] for i in every]), strict=True))
    shown = {}
    for latent, mine in chosen.items():
        flags = [strong(rows[i], peaks[i], explainer.mark_threshold) for i in mine]
        notation = Notation.of([(texts[i], one) for i, one in zip(mine, flags, strict=True)])
        windows_of = []
        for i, marked in zip(mine, flags, strict=True):
            scale = activation_scale(rows[i], float(peaks[mine[0]]))
            strengths = [
                f"{json.dumps(texts[i].text[start:stop], ensure_ascii=False)} {strength}"
                for (start, stop), strength in compress(
                    zip(texts[i].spans, scale, strict=True), marked
                )
            ]
            text = notation.window(texts[i], marked)
            windows_of.append({"text": text, "strengths": one_line(", ".join(strengths))})
        shown[latent] = ShownWindows(windows_of, notation)
    return shown
