"""Explanations that a language model writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nullsae.autointerp.llm.client import LanguageModel, Request
from nullsae.autointerp.llm.session import Asked
from nullsae.autointerp.marking import Shown, activation_scale, mark, strong, window_texts
from nullsae.autointerp.prompting import Prompt, check_prompt, load_prompt, one_line
from nullsae.autointerp.replies import explanation
from nullsae.config.explainers import OpenAIExplainer
from nullsae.tables import cell_schema

log = logging.getLogger(__name__)

# Questions about one latent, the first one included, before its explanation counts as missing.
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class ShownWindow:
    """A window in the prompt."""

    text: str
    """With marks around the tokens at which the latent is strongly active."""
    strengths: str
    """Those tokens with their strength from 1 to 10."""


def shown_window(
    shown: Shown, activations: NDArray[np.float32], threshold: float, maximum: float
) -> ShownWindow:
    """A window as an explainer sees it.

    Args:
        shown: its text.
        activations: float32 [n_tokens].
        threshold: share of the window's largest activation above which a token is marked.
        maximum: the latent's largest activation among the windows of the prompt: 10.
    """
    marked = strong(activations, activations.max(), threshold)
    scale = activation_scale(activations, maximum)
    strengths = [
        f"{json.dumps(shown.text[start:stop], ensure_ascii=False)} {scale[i]}"
        for i, (start, stop) in enumerate(shown.spans)
        if marked[i]
    ]
    return ShownWindow(one_line(mark(shown, marked)), ", ".join(strengths))


def questions(
    windows: pa.Table, tokenizer: Tokenizer, explainer: OpenAIExplainer
) -> dict[int, list[ShownWindow]]:
    """The windows to show of each latent, strongest first, by ascending latent.

    Args:
        windows: the table `windows` of one SAE.
        tokenizer: the corpus' tokenizer.
        explainer: how many, and what is marked.
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
    return {
        latent: [
            shown_window(texts[i], rows[i], explainer.mark_threshold, float(peaks[mine[0]]))
            for i in mine
        ]
        for latent, mine in chosen.items()
    }


def written_explanations(
    windows: pa.Table, tokenizer: Tokenizer, explainer: OpenAIExplainer, asked: Asked
) -> pa.Table:
    """Have a language model explain each latent by its active explaining windows.

    An answer without an explanation is asked for again, in other words, up to `MAX_ATTEMPTS` times
    in all; what never comes is a row with a reason.

    Args:
        windows: the table `windows` of one SAE.
        tokenizer: the corpus' tokenizer.
        explainer: whom to ask, and how.
        asked: how endpoints are asked.

    Returns:
        The columns of the table `explanations`, sorted by latent.

    Raises:
        UserError: the endpoint or the prompt's file cannot be used.
    """
    prompt = load_prompt("explain", explainer.prompt)
    check_prompt(prompt, explainer.prompt, windows=[ShownWindow("", "")])
    shown = questions(windows, tokenizer, explainer)

    def work(model: LanguageModel) -> list[Coroutine[Any, Any, str | None]]:
        return [_ask(model, prompt, mine, explainer) for mine in shown.values()]

    texts = asked.all(explainer, work, len(shown))
    rows: list[dict[str, Any]] = [
        {
            "latent": latent,
            "explanation": text,
            "reason": None if text else "the model gave no explanation",
            "source_latent": latent,
            "model": explainer.model,
            "prompt_hash": prompt.hash,
            "base_probability": None,
            "token_ids": [],
            "token_probabilities": [],
            "pair_previous_ids": [],
            "pair_token_ids": [],
            "pair_probabilities": [],
        }
        for latent, text in zip(shown, texts, strict=True)
    ]
    if missing := sum(text is None for text in texts):
        log.warning("%d of %d latents have no explanation", missing, len(texts))
    return pa.Table.from_pylist(rows, schema=cell_schema("explanations"))


async def _ask(
    model: LanguageModel, prompt: Prompt, windows: list[ShownWindow], explainer: OpenAIExplainer
) -> str | None:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        messages = prompt.messages(attempt, windows=windows)
        reply = await model.ask(Request(messages, explainer.max_completion_tokens))
        if reply is None:
            return None
        if text := explanation(reply):
            return text
    return None
