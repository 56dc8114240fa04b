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
# What decoders write for bytes that are no character.
REPLACEMENT = "\ufffd"
# A byte of a tokenizer with byte fallback, as in Llama's vocabulary: <0x0A>.
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>\Z")
# The byte that each letter of a byte-level vocabulary stands for (GPT-2's encoder.py).
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_LETTERS = {chr(b): b for b in _PLAIN}
BYTE_LETTERS |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _PLAIN)}


@dataclass(frozen=True)
class Shown:
    """The text of a window."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """First character of each token in the text, and the one after its last. Tokens that hold
    bytes of the same character share it; a token without text has an empty span."""


def window_texts(tokenizer: Tokenizer, token_ids: Sequence[Ints] | Ints) -> list[Shown]:
    """Decode windows of tokens.

    Each text is the tokenizer's own decoding, special tokens included, with the space that a
    window starts with: decoders in the way of SentencePiece drop it. `token_ids` are int
    [n_windows, n_tokens], or an array for each window.
    """
    windows = [np.asarray(ids).tolist() for ids in token_ids]
    pieces = Pieces(tokenizer)
    texts = pieces.decode(windows)
    return [pieces.shown(ids, text) for ids, text in zip(windows, texts, strict=True)]


class Pieces:
    """The bytes that each token adds to a text, remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._piece = cache(self._find_piece)
        # Goes before all that is decoded, because a decoder may strip the first token of a text.
        self._before, self._n_before = [], 0
        for token_id in range(tokenizer.get_vocab_size()):
            text = tokenizer.decode([token_id], skip_special_tokens=False)
            # No byte: a decoder with byte fallback reads neighbouring bytes as one.
            if text.isalnum() and not BYTE_NAME.match(tokenizer.id_to_token(token_id) or ""):
                self._before, self._n_before = [token_id], len(text)
                break

    def decode(self, windows: Sequence[list[int]]) -> list[str]:
        """The texts of windows, with the spaces that they start with."""
        batch = [self._before + ids for ids in windows]
        texts = self._tokenizer.decode_batch(batch, skip_special_tokens=False)
        return [text[self._n_before :] for text in texts]

    def shown(self, token_ids: list[int], text: str) -> Shown:
        """A window's text and spans, from its tokens and what `decode` makes of them."""
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
        """Spans by what the beginnings of a window decode to: slow, and right for any decoder.

        For tokens that read differently beside others, as where a decoder with byte fallback
        writes off a run of bytes as a whole because one of them fits no character.
        """
        prefixes = self.decode([token_ids[:n] for n in range(1, len(token_ids) + 1)])
        # Characters that each begins with alike.
        common = (
            next((i for i, c in enumerate(prefix) if text[i : i + 1] != c), len(prefix))
            for prefix in prefixes
        )
        bounds = list(accumulate(common, max, initial=0))
        # A token that only begins a character, or continues it, shares it with its last.
        return tuple(
            (a, b if b > a or not piece else min(a + 1, len(text)))
            for (a, b), piece in zip(pairwise(bounds), pieces, strict=True)
        )


def _character_of_bytes(joined: bytes) -> list[int]:
    """Index of the character that each byte belongs to, and at last their number.

    Bytes that are no UTF-8 come in the groups that `errors="replace"` makes one character of.
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
    """The text with marks around the marked tokens; neighbours share one pair of them.

    The text itself stays as it is: `marks_are_clear` says whether these marks can be told from it.
    A token without text takes no mark. `marked` is bool [n_tokens].
    """
    at, parts = 0, []
    for i, edge in enumerate(_edges(shown, marked)):
        parts += [shown.text[at:edge], right if i % 2 else left]
        at = edge
    return "".join([*parts, shown.text[at:]])


def marks_are_clear(shown: Shown, marked: Flags, left: str, right: str) -> bool:
    """Whether a reader of `mark` finds each mark, and nothing else that looks like one.

    Marks that overlap with each other's or the text's characters count each time.
    """
    text, n_pairs = mark(shown, marked, left, right), len(_edges(shown, marked)) // 2
    counts = (len(re.findall(f"(?={re.escape(one)})", text)) for one in (left, right))
    return all(count == n_pairs for count in counts)


def _edges(shown: Shown, marked: Flags) -> list[int]:
    """Where stretches of marked characters begin and end, in turn."""
    covered = np.zeros(len(shown.text), dtype=np.int8)
    for i in np.flatnonzero(marked).tolist():
        covered[slice(*shown.spans[i])] = 1
    edges: list[int] = np.flatnonzero(np.diff(covered, prepend=0, append=0)).tolist()
    return edges


def activation_scale(activations: NDArray[np.floating], maximum: float) -> Ints:
    """Activations [n] as whole numbers from 0 to 10: ceil(10 a / maximum), as delphi shows them.

    Larger activations than `maximum`, which is 0 where all are, become 10 too.
    """
    if maximum <= 0:
        return np.zeros(len(activations), dtype=np.int64)
    scaled = np.ceil(10 * np.asarray(activations, dtype=np.float64) / maximum)
    return np.minimum(scaled, 10).astype(np.int64)


def shown_examples(
    tokenizer: Tokenizer, examples: Examples, rows: Ints | None = None
) -> list[tuple[Shown, Flags]]:
    """The text and the marks of each example, or of those in some rows."""
    chosen = range(len(examples.latent)) if rows is None else rows
    places = [slice(*examples.starts[i : i + 2]) for i in chosen]
    shown = window_texts(tokenizer, [examples.tokens[place] for place in places])
    return [(text, examples.marked[p]) for text, p in zip(shown, places, strict=True)]
