"""Three latents with one word each, for tests that ask a server about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from autointerp_cells import explained, explanation, window
from scripted_server import ScriptedServer
from tokenizers import Tokenizer

from nullsae.autointerp.llm.session import Session
from nullsae.config.llm import Llm

WORDS = ("apple", "river", "seven")
WINDOW_TOKENS = 16
N_WINDOWS = 15
Rows = list[dict[str, Any]]


def text_window(
    tokenizer: Tokenizer, latent: int, index: int, word: str | None, pool: str
) -> dict[str, Any]:
    """A window of letters, with a word at which the latent fires, if any."""
    generator = np.random.default_rng((latent, index))
    filler = tokenizer.encode("".join(generator.choice(list("bcdfgh "), 40))).ids
    ids, values = filler[:WINDOW_TOKENS], [0.0] * WINDOW_TOKENS
    if word is not None:
        own = tokenizer.encode(f" {word} ").ids
        start = int(generator.integers(0, WINDOW_TOKENS - len(own)))
        ids[start : start + len(own)] = own
        # Not on the surrounding spaces.
        values[start + 1 : start + len(own) - 1] = [2.0] * (len(own) - 2)
    return window(latent, index, ids, values, pool=pool)


def judge_of(server: ScriptedServer, **more: Any) -> dict[str, Any]:
    return {"model": "m", "base_url": server.url, "api_key_env": None, **more}


def asked(folder: Path, **settings: Any) -> Session:
    return Session(lambda: Llm(**settings), root=folder, costs=folder / "asked.json")


def told(words: tuple[str | None, ...] = WORDS) -> pa.Table:
    """Return explanations in words, as from a language model."""
    empty = {"base_probability": None}
    return explained(
        *(
            {**explanation(i, {}, 0.0), **empty, "explanation": word and f"{word} and nothing else"}
            for i, word in enumerate(words)
        )
    )
