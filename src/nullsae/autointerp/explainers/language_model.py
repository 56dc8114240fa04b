"""Explanations that a language model writes."""

from __future__ import annotations

import json
import logging
from itertools import compress
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PositiveInt

from nullsae.autointerp import prompting
from nullsae.autointerp.examples import strong
from nullsae.autointerp.explain import ExplainJob, explained_in_words
from nullsae.autointerp.marking import activation_scale, mark, window_texts
from nullsae.autointerp.prompting import check_prompt, load_prompt, one_line
from nullsae.autointerp.replies import explanation
from nullsae.config.endpoints import Endpoint, Questions, WindowCounts
from nullsae.config.explainers import Explainer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

# Tokens of a window's list of strengths.
TOKENS_OF_STRENGTHS = 12


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
    """A token is marked when it is active above this share of its window's maximum."""
    max_completion_tokens: PositiveInt = 500
    """Length of an answer; a model that reasons needs more."""
    prompt: str | None = None
    """File to use in the place of nullsae's own prompt; `autointerp/prompts` has that."""

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
        """Have the model explain each latent by its active explaining windows.

        An answer without an explanation is asked for again, in other words; what never comes is a
        row with a reason.
        """
        windows, tokenizer = job.windows(), job.tokenizer
        prompt = load_prompt("explain", self.prompt)
        check_prompt(prompt, self.prompt, windows=[{"text": "", "strengths": ""}])
        shown = shown_windows(windows, tokenizer, self)
        texts = job.session.all(
            self,
            lambda model: [
                prompt.ask(model, explanation, self.max_completion_tokens, windows=mine)
                for mine in shown.values()
            ],
            len(shown),
        )
        if missing := sum(text is None for text in texts):
            log.warning("%d of %d latents have no explanation", missing, len(texts))
        found = dict(zip(shown, texts, strict=True))
        return explained_in_words(found, "the model gave no explanation", self.model, prompt.hash)


def shown_windows(
    windows: pa.Table, tokenizer: Tokenizer, explainer: OpenAIExplainer
) -> dict[int, list[dict[str, str]]]:
    """The windows of the table `windows` to show of each latent, strongest first, by latent.

    `text` has marks around strongly active tokens; `strengths` says how much, from 1 to 10, which
    is the latent's largest activation in the prompt.
    """
    wanted = pc.and_(pc.equal(windows["pool"], "explain"), windows["active"])
    windows = windows.filter(wanted).sort_by([("latent", "ascending"), ("window", "ascending")])
    latents = windows["latent"].to_numpy()
    rows = [np.asarray(row, np.float32) for row in windows["activations"].to_pylist()]
    peaks = np.array([row.max() for row in rows])
    chosen = {}
    for latent in np.unique(latents).tolist():
        mine = np.flatnonzero(latents == latent)
        order = np.argsort(-peaks[mine], kind="stable")[: explainer.shown_windows]
        chosen[latent] = mine[order].tolist()
    ids = windows["token_ids"].to_pylist()
    # All at once: decoding a token's piece is done once per call.
    every = [i for mine in chosen.values() for i in mine]
    texts = dict(zip(every, window_texts(tokenizer, [ids[i] for i in every]), strict=True))
    shown: dict[int, list[dict[str, str]]] = {latent: [] for latent in chosen}
    for latent, mine in chosen.items():
        for i in mine:
            marked = strong(rows[i], peaks[i], explainer.mark_threshold)
            scale = activation_scale(rows[i], float(peaks[mine[0]]))
            strengths = [
                f"{json.dumps(texts[i].text[start:stop], ensure_ascii=False)} {strength}"
                for (start, stop), strength in compress(
                    zip(texts[i].spans, scale, strict=True), marked
                )
            ]
            text = one_line(mark(texts[i], marked))
            shown[latent].append({"text": text, "strengths": ", ".join(strengths)})
    return shown
