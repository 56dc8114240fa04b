"""A document: one text, however a program wrote it down, and the split that it belongs to."""

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
    """Halves of a surrogate pair, which no encoding of Unicode can hold, that became U+FFFD."""
    byte_order_marks: int = 0
    """Those at the start of a document, which were left out."""


def normalize(text: str, replaced: Replaced) -> str:
    """A document as it is tokenized: line feeds only, no lone surrogate, no byte order mark first.

    Letters stay as they are: composed and decomposed forms are different texts to a tokenizer.
    `replaced` counts what changes.
    """
    if text.startswith(MARK):
        text = text[1:]
        replaced.byte_order_marks += 1
    if "\r" in text:
        replaced.line_ends += text.count("\r")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii() and SURROGATE.search(text):
        # Halves that stand together are one character; what is then left is none.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        text, n_lone = SURROGATE.subn("\ufffd", text)
        replaced.surrogates += n_lone
    return text


def text_digest(text: str) -> bytes:
    """16 bytes of BLAKE2b over a normalized text: decides its split, its place, what equals it."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def split_of_digest(digest: bytes, eval_share: float) -> SplitName:
    """The split of a document.

    A document keeps its split whatever documents are added, removed or reordered, and equal texts
    share one. A larger `eval_share`, the probability of `eval`, moves documents to `eval` only.
    """
    return "eval" if int.from_bytes(digest[:8], "big") < eval_share * 2**64 else "sae_train"
