"""Which split a document belongs to: a function of its text and nothing else."""

from __future__ import annotations

import hashlib
from typing import Literal

SplitName = Literal["eval", "sae_train"]


def text_digest(text: str) -> bytes:
    """16 bytes of BLAKE2b over a normalized text: decides its split, its place, what equals it."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def split_of_digest(digest: bytes, eval_share: float) -> SplitName:
    """The split of a document.

    A document keeps its split whatever documents are added, removed or reordered, and equal texts
    share one. A larger `eval_share` moves documents to `eval` only.

    Args:
        digest: of the whole text, as from `text_digest`.
        eval_share: probability of `eval`, between 0 and 1.
    """
    return "eval" if int.from_bytes(digest[:8], "big") < eval_share * 2**64 else "sae_train"
