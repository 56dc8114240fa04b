"""How windows are shown to language models: as text, with marks around tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nullsae.autointerp.examples import Examples, Flags, Ints

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LEFT, RIGHT = "<<", ">>"
# What decoders write for bytes that are not a character.
REPLACEMENT = "\ufffd"
# A byte in a tokenizer with byte fallback, as in Llama's vocabulary: <0x0A>.
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>\Z")
# The byte for each letter of a byte-level vocabulary (GPT-2's encoder.py).
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_LETTERS = {chr(b): b for b in _PLAIN}
BYTE_LETTERS |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _PLAIN)}


@dataclass(frozen=True)
class Shown:
    """The text of a window."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """The index of each token's first character in the text, and of the one after its last. Tokens
    with bytes of the same character share it; a token without text has an empty span."""


def window_texts(tokenizer: Tokenizer, token_ids: Sequence[Ints] | Ints) -> list[Shown]:
    """Decode windows of tokens.

    Each text is the tokenizer's own decoding, including special tokens and the space at the start
    of a window, which SentencePiece-like decoders drop. `token_ids` are int [n_windows, n_tokens],
    or one array per window.
    """
    windows = [np.asarray(ids).tolist() for ids in token_ids]
    pieces = Pieces(tokenizer)
    texts = pieces.decode(windows)
    return [pieces.shown(ids, text) for ids, text in zip(windows, texts, strict=True)]


class Pieces:
    """The bytes that each token adds to a text, cached."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._piece = cache(self._find_piece)
        # Precedes everything that is decoded, because a decoder may strip a text's first token.
        self._before, self._n_before = [], 0
        for token_id in range(tokenizer.get_vocab_size()):
            text = tokenizer.decode([token_id], skip_special_tokens=False)
            # Not a byte, because decoders with byte fallback merge neighbouring bytes.
            if text.isalnum() and not BYTE_NAME.match(tokenizer.id_to_token(token_id) or ""):
                self._before, self._n_before = [token_id], len(text)
                break

    def decode(self, windows: Sequence[list[int]]) -> list[str]:
        """Return the texts of windows, with leading spaces."""
        batch = [self._before + ids for ids in windows]
        texts = self._tokenizer.decode_batch(batch, skip_special_tokens=False)
        return [text[self._n_before :] for text in texts]

    def shown(self, token_ids: list[int], text: str) -> Shown:
        """Return a window's text and spans, from its tokens and its decoded text."""
        pieces = [self._piece(token_id) for token_id in token_ids]
        joined = b"".join(pieces)
        if joined.decode(errors="replace") != text:
            return Shown(text, self._spans_by_prefixes(token_ids, pieces, text))
        bounds = list(accumulate(map(len, pieces), initial=0))
        if joined.isascii():
            return Shown(text, tuple(pairwise(bounds)))
        at = _character_of_bytes(joined)
        ends = ((at[a], at[b - 1] + 1 if b > a else at[a]) for a, b in pairwise(bounds))
        return Shown(text, tuple(ends))

    def _find_piece(self, token_id: int) -> bytes:
        name = self._tokenizer.id_to_token(token_id)
        if name is None:
            return b""
        (text,) = self.decode([[token_id]])
        if REPLACEMENT in text:
            if byte := BYTE_NAME.match(name):
                return bytes([int(byte[1], 16)])
            if all(letter in BYTE_LETTERS for letter in name):
                return bytes(BYTE_LETTERS[letter] for letter in name)
        return text.encode()

    def _spans_by_prefixes(
        self, token_ids: list[int], pieces: list[bytes], text: str
    ) -> tuple[tuple[int, int], ...]:
        """Find spans by decoding each prefix of a window: slow, but correct for any decoder.

        For tokens that decode differently next to others, as when a decoder with byte fallback
        replaces a whole run of bytes because one of them fits no character.
        """
        prefixes = self.decode([token_ids[:n] for n in range(1, len(token_ids) + 1)])
        # The number of leading characters that each prefix shares with the text.
        common = (
            next((i for i, c in enumerate(prefix) if text[i : i + 1] != c), len(prefix))
            for prefix in prefixes
        )
        bounds = list(accumulate(common, max, initial=0))
        # A token that only starts or continues a character shares it with its neighbours.
        return tuple(
            (a, b if b > a or not piece else min(a + 1, len(text)))
            for (a, b), piece in zip(pairwise(bounds), pieces, strict=True)
        )


def _character_of_bytes(joined: bytes) -> list[int]:
    """Return the index of each byte's character, followed by the number of characters.

    Invalid UTF-8 is grouped in the way that `errors="replace"` turns it into characters.
    """
    values = np.frombuffer(joined, dtype=np.uint8)
    starts = (values & 0xC0) != 0x80
    at = 0
    while at < len(joined):
        try:
            joined[at:].decode()
            break
        except UnicodeDecodeError as error:
            starts[at + error.start : at + error.end] = False
            starts[at + error.start] = True
            at += error.end
    index = np.cumsum(starts) - 1
    return [*index.tolist(), int(starts.sum())]


def mark(shown: Shown, marked: Flags, left: str = LEFT, right: str = RIGHT) -> str:
    """Return the text with marks around the marked tokens; neighbours share one pair.

    The text itself does not change: `marks_are_clear` tells whether it can be confused with these
    marks. Tokens without text get no mark. `marked` is bool [n_tokens].
    """
    at, parts = 0, []
    for i, edge in enumerate(_edges(shown, marked)):
        parts += [shown.text[at:edge], right if i % 2 else left]
        at = edge
    return "".join([*parts, shown.text[at:]])


def marks_are_clear(shown: Shown, marked: Flags, left: str, right: str) -> bool:
    """Return whether a reader of `mark` finds every mark, and nothing else that looks like one.

    Marks that overlap each other or the text's characters count each time.
    """
    text, n_pairs = mark(shown, marked, left, right), len(_edges(shown, marked)) // 2
    counts = (len(re.findall(f"(?={re.escape(one)})", text)) for one in (left, right))
    return all(count == n_pairs for count in counts)


def _edges(shown: Shown, marked: Flags) -> list[int]:
    """Return where stretches of marked characters begin and end, alternately."""
    covered = np.zeros(len(shown.text), dtype=np.int8)
    for i in np.flatnonzero(marked).tolist():
        covered[slice(*shown.spans[i])] = 1
    edges: list[int] = np.flatnonzero(np.diff(covered, prepend=0, append=0)).tolist()
    return edges


def activation_scale(activations: NDArray[np.floating], maximum: float) -> Ints:
    """Scale activations [n] to whole numbers from 0 to 10: ceil(10 a / maximum), as in delphi.

    Activations above `maximum`, which is 0 if all are, become 10 too.
    """
    if maximum <= 0:
        return np.zeros(len(activations), dtype=np.int64)
    scaled = np.ceil(10 * np.asarray(activations, dtype=np.float64) / maximum)
    return np.minimum(scaled, 10).astype(np.int64)


def shown_examples(
    tokenizer: Tokenizer, examples: Examples, rows: Ints | None = None
) -> list[tuple[Shown, Flags]]:
    """Return the text and the marks of each example, or of those in `rows`."""
    chosen = range(len(examples.latent)) if rows is None else rows
    places = [slice(*examples.starts[i : i + 2]) for i in chosen]
    shown = window_texts(tokenizer, [examples.tokens[place] for place in places])
    return [(text, examples.marked[p]) for text, p in zip(shown, places, strict=True)]
