"""Tokens in readable form, and windows as stretches of text with their activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tokenizers import Tokenizer

from nullsae.core.visible import visible
from nullsae.corpus.token_text import token_text

# Marks for invisible characters that are common in text.
_MARKS = str.maketrans({"\n": "¶", "\t": "⇥"})
_UNFINISHED = "\ufffd"
"""What decoding returns for a token with only part of a character."""
_MAX_UTF8_BYTES = 4
NONE = "\u2013"
"""Shown in place of a missing number."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a window: an active token, or a run of silent ones (activation 0)."""

    text: str
    activation: float


class TokenText:
    """The text of token ids, one at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[int, str] = {}

    def one(self, token_id: int) -> str:
        """Return the text of one token, including white space.

        Part of a multi-byte character gives U+FFFD; an id without text gives its number.
        """
        if token_id not in self._seen:
            self._seen[token_id] = token_text(self._tokenizer, token_id) or f"⟨{token_id}⟩"
        return self._seen[token_id]

    def run(self, token_ids: Sequence[int]) -> str:
        """Return the text of consecutive tokens, joining characters split between them."""
        text = "".join(self.one(token_id) for token_id in token_ids)
        if _UNFINISHED not in text:
            return text
        whole: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return " " + whole if text.startswith(" ") and not whole.startswith(" ") else whole

    def _characters(self, tokens: Sequence[tuple[int, float]]) -> Iterator[tuple[str, float]]:
        """Yield text and activation of each token; tokens that share a character are merged.

        A merged group has the largest activation of its tokens.
        """
        ids: list[int] = []
        values: list[float] = []
        for left, (token_id, value) in zip(range(len(tokens) - 1, -1, -1), tokens, strict=True):
            ids, values = [*ids, token_id], [*values, value]
            text = self.run(ids)
            if left and text.endswith(_UNFINISHED) and len(ids) < _MAX_UTF8_BYTES:
                continue
            yield text, max(values)
            ids, values = [], []

    def pieces(self, token_ids: Sequence[int], activations: Sequence[float]) -> list[Piece]:
        """Cut a window into its active tokens and the silent stretches between them.

        `activations` are the latent's on each token.
        """
        found: list[Piece] = []
        tokens = zip(token_ids, activations, strict=True)
        for active, run in groupby(tokens, key=lambda token: token[1] > 0):
            pairs = list(run)
            if active:
                found += [Piece(inked(text), value) for text, value in self._characters(pairs)]
            else:
                found.append(Piece(inked(self.run([token for token, _ in pairs])), 0.0))
        return found


def inked(text: str) -> str:
    """Show invisible text: line breaks as ¶, pure white space as ␣, the rest by `visible`."""
    if text and not text.strip(" "):
        return "␣" * len(text)
    return visible(text.translate(_MARKS))
