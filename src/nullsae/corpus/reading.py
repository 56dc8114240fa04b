"""Reads a source once: normalizes texts, drops empty or repeated ones, and counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nullsae.corpus.digests import DigestSet
from nullsae.corpus.documents import (
    SPLITS,
    Replaced,
    SplitName,
    normalize,
    split_of_digest,
    text_digest,
)


class Document(NamedTuple):
    """One text with its position; documents sort by digest."""

    digest: bytes
    split: SplitName
    text: str


@dataclass
class Counts:
    """What was read from a source so far."""

    n_read: int = 0
    n_empty: int = 0
    n_repeated: int = 0
    replaced: Replaced = field(default_factory=Replaced)
    n_kept: dict[SplitName, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    """Distinct documents of each split."""

    def take(self, state: dict[str, Any]) -> None:
        """Restore the counts of an earlier run, as `asdict` gives them."""
        replaced = Replaced(**state["replaced"])
        vars(self).update({**state, "replaced": replaced})


def normalized(texts: Iterable[str], eval_share: float, counts: Counts) -> Iterator[Document]:
    """Yield nonempty documents, including repeated ones; count all but kept and repeated ones."""
    for text in texts:
        counts.n_read += 1
        text = normalize(text, counts.replaced)
        if not text.strip():
            counts.n_empty += 1
            continue
        digest = text_digest(text)
        yield Document(digest, split_of_digest(digest, eval_share), text)


class Reader:
    """Distinct documents of a source, in its order."""

    def __init__(self, texts: Iterable[str], eval_share: float) -> None:
        self.counts = Counts()
        self._documents = normalized(texts, eval_share, self.counts)
        self._digests = DigestSet()

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            # Two copies in `eval` would put one text into both the explaining and scoring pools.
            if self._digests.add(document.digest):
                self.counts.n_kept[document.split] += 1
                yield document
            else:
                self.counts.n_repeated += 1

    def take(self, counts: dict[str, Any], digests: bytes) -> None:
        """Resume after documents with these concatenated digests."""
        self.counts.take(counts)
        self._digests.add_all(digests)

    def digest(self) -> str:
        """Return one digest of the set of documents read so far."""
        return self._digests.digest()
