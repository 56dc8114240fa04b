"""A document: one text, however a program wrote it, and its split."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

SplitName = Literal["eval", "sae_train"]
SPLITS: tuple[SplitName, ...] = ("sae_train", "eval")
SURROGATE = re.compile("[\ud800-\udfff]")
MARK = "\ufeff"


@dataclass
class Replaced:
    """What `normalize` changed, in characters of all documents so far."""

    line_ends: int = 0
    """Carriage returns, alone or before a line feed, that became one line feed."""
    surrogates: int = 0
    """Unpaired surrogates, which no Unicode encoding can represent, that became U+FFFD."""
    byte_order_marks: int = 0
    """Byte order marks at the start of a document, which were removed."""


def normalize(text: str, replaced: Replaced) -> str:
    """Normalize a document: only line feeds, no lone surrogates, no leading byte order mark.

    Letters stay unchanged: composed and decomposed forms are different texts to a tokenizer.
    `replaced` counts the changes.
    """
    if text.startswith(MARK):
        text = text[1:]
        replaced.byte_order_marks += 1
    if "\r" in text:
        replaced.line_ends += text.count("\r")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii() and SURROGATE.search(text):
        # Adjacent halves are one character; halves that remain are lone.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        text, n_lone = SURROGATE.subn("\ufffd", text)
        replaced.surrogates += n_lone
    return text


def text_digest(text: str) -> bytes:
    """Return BLAKE2b (16 bytes) of a normalized text: its identity, split and position."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def split_of_digest(digest: bytes, eval_share: float) -> SplitName:
    """Return the split of a document.

    A document keeps its split whatever documents are added, removed or reordered, and equal texts
    share one. A larger `eval_share`, the probability of `eval`, only moves documents to `eval`.
    """
    return "eval" if int.from_bytes(digest[:8], "big") < eval_share * 2**64 else "sae_train"
