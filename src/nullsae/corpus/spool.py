"""Documents on disk, read back in the order of their digests: a sort that needs little memory.

Each document goes to one of 256 buckets by the first byte of its digest. A bucket is two files:
concatenated texts, and an index of digests and lengths, which is sorted when the bucket is read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nullsae.core.files import read_json, room_for, write_json
from nullsae.corpus.documents import SplitName
from nullsae.corpus.reading import Counts, Document, normalized

log = logging.getLogger(__name__)

SHOW_SECONDS = 30
# Bytes of text that are buffered before they are written.
BUFFER_BYTES = 2**25
# An index entry; the digest is split into two numbers, which sort as its bytes do.
ENTRY = np.dtype([("first", ">u8"), ("second", ">u8"), ("n_bytes", "<u8")])
# All documents of `eval` have smaller digests than those of `sae_train`.
IN_ORDER: tuple[SplitName, ...] = ("eval", "sae_train")
STATE = "state.json"

Bucket = tuple[SplitName, int]


class NotKeptError(Exception):
    """More documents are needed than were estimated."""


@dataclass
class _Held:
    """Data waiting to be written to one bucket."""

    index: bytearray = field(default_factory=bytearray)
    texts: bytearray = field(default_factory=bytearray)


class _Clock:
    """Logs every 30 s how many documents were read; their total is unknown."""

    def __init__(self, n_before: int) -> None:
        self._n_before, self._start = n_before, time.monotonic()
        self._shown = self._start

    def show(self, n_read: int) -> None:
        now = time.monotonic()
        if now - self._shown >= SHOW_SECONDS:
            self._shown = now
            rate = (n_read - self._n_before) / (now - self._start)
            log.info("%d documents read, %.0f documents/s", n_read, rate)


class Spool:
    """The distinct documents of a source, sorted by digest.

    Memory: `BUFFER_BYTES` of text and the index of one bucket, 24 bytes x documents / 256, several
    times. Disk: all texts, or those of the smallest digests, and 24 bytes per document.
    """

    def __init__(
        self, folder: Path, eval_share: float, kept_bytes: dict[SplitName, int | None]
    ) -> None:
        """Prepare a folder for the documents.

        Args:
            folder: for its files; files of an earlier run are reused.
            eval_share: probability of `eval`.
            kept_bytes: for each split, UTF-8 bytes of text of the smallest digests that will be
                read back; None for all.
        """
        self.folder, self._eval_share, self._kept_bytes = folder, eval_share, kept_bytes
        self.counts = Counts()
        self._sizes: dict[Bucket, list[int]] = {}
        """Valid bytes of index and of texts; files may be longer after a kill."""
        self._dropped: set[Bucket] = set()
        """Buckets without stored texts."""
        self._held: dict[Bucket, _Held] = defaultdict(_Held)
        self._digest = ""

    def fill(self, texts: Iterable[str]) -> None:
        """Read a source to its end, resuming where an earlier run was killed.

        `texts` starts at the beginning; texts that were read before are skipped.
        """
        if not self._restore():
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._digest:
            return
        held, clock = 0, _Clock(self.counts.n_read)
        rest = islice(iter(texts), self.counts.n_read, None)
        for document in normalized(rest, self._eval_share, self.counts):
            data = document.text.encode()
            bucket = (document.split, document.digest[0])
            waiting = self._held[bucket]
            waiting.index += document.digest + len(data).to_bytes(8, "little")
            if bucket not in self._dropped:
                waiting.texts += data
            held += len(data) + ENTRY.itemsize
            if held >= BUFFER_BYTES:
                self._flush()
                clock.show(self.counts.n_read)
                held = 0
        self._flush()
        self._count()
        self._save()

    @property
    def digest(self) -> str:
        """One digest of the set of documents, as `DigestSet.digest`; valid after `fill`."""
        return self._digest

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """Yield distinct documents in the order of their digests, without the first `skip`.

        Raises:
            NotKeptError: a document's text was not stored.
        """
        for bucket in self._buckets():
            index = self._index(bucket)
            order = _distinct(index)
            if skip >= len(order):
                skip -= len(order)
                continue
            if bucket in self._dropped:
                raise NotKeptError
            starts = np.concatenate([[0], np.cumsum(index["n_bytes"])]).astype(np.int64)
            with open(self._file(bucket, "texts"), "rb") as stream:
                for i in order[skip:].tolist():
                    size = int(starts[i + 1] - starts[i])
                    text = os.pread(stream.fileno(), size, int(starts[i])).decode()
                    yield Document(index[i : i + 1].tobytes()[:16], bucket[0], text)
            skip = 0

    def training_texts(self) -> Iterator[str]:
        """Yield the texts of `sae_train`, which must all be stored."""
        for document in self.documents(self.counts.n_kept["eval"]):
            yield document.text

    def finish(self) -> None:
        """Do nothing: `fill` reads everything."""

    def state(self) -> dict[str, Any]:
        """Return nothing: `fill` writes what it needs."""
        return {}

    def go_on(self, state: dict[str, Any] | None) -> bool:
        """Return True: `fill` resumes by itself."""
        return True

    def _buckets(self) -> list[Bucket]:
        """Return nonempty buckets in the order of their digests."""
        return sorted(self._sizes, key=lambda bucket: (IN_ORDER.index(bucket[0]), bucket[1]))

    def _file(self, bucket: Bucket, kind: str) -> Path:
        return self.folder / f"{bucket[0]}-{bucket[1]:02x}.{kind}"

    def _index(self, bucket: Bucket) -> np.ndarray:
        return np.fromfile(self._file(bucket, "index"), dtype=ENTRY)

    def _flush(self) -> None:
        """Write buffered data; a run after a kill resumes from here."""
        with room_for(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for bucket, held in self._held.items():
                sizes = self._sizes.setdefault(bucket, [0, 0])
                for i, (kind, data) in enumerate((("index", held.index), ("texts", held.texts))):
                    # Files are opened one at a time, because a process may be limited to 256.
                    with open(self._file(bucket, kind), "ab") as stream:
                        stream.write(data)
                    sizes[i] += len(data)
            self._held.clear()
            given_up = self._dropped.copy()
            self._drop()
            # Save first: a state that names deleted files would be damaged, the reverse is not.
            self._save()
            for bucket in self._dropped - given_up:
                self._file(bucket, "texts").unlink(missing_ok=True)

    def _drop(self) -> None:
        """Mark buckets beyond the wanted texts as dropped."""
        for split, wanted in self._kept_bytes.items():
            found = 0
            for bucket in (bucket for bucket in self._buckets() if bucket[0] == split):
                if wanted is not None and found >= wanted:
                    self._dropped.add(bucket)
                    self._sizes[bucket][1] = 0
                found += self._sizes[bucket][1]

    def _count(self) -> None:
        """Count distinct documents, bucket by bucket."""
        found = hashlib.blake2b(digest_size=16)
        self.counts.n_repeated = 0
        self.counts.n_kept = dict.fromkeys(self.counts.n_kept, 0)
        for bucket in self._buckets():
            index = self._index(bucket)
            order = _distinct(index)
            self.counts.n_kept[bucket[0]] += len(order)
            self.counts.n_repeated += len(index) - len(order)
            found.update(index.view(np.uint8).reshape(len(index), -1)[order, :16].tobytes())
        self._digest = found.hexdigest()

    def _save(self) -> None:
        write_json(
            self.folder / STATE,
            {
                "counts": asdict(self.counts),
                "sizes": [[*bucket, *sizes] for bucket, sizes in self._sizes.items()],
                "dropped": sorted(self._dropped),
                "kept_bytes": self._kept_bytes,
                "digest": self._digest,
            },
        )

    def _restore(self) -> bool:
        """Resume from what an earlier run left; return False if it cannot be used."""
        if not (self.folder / STATE).is_file():
            return False
        state = read_json(self.folder / STATE, rebuild="")
        files = {
            self._file((split, first), kind): size
            for split, first, *sizes in state["sizes"]
            for kind, size in zip(("index", "texts"), sizes, strict=True)
        }
        # A state with all texts is usable as well.
        fits = state["kept_bytes"] in (self._kept_bytes, dict.fromkeys(self._kept_bytes))
        if not fits or not all(
            size == 0 or (file.is_file() and file.stat().st_size >= size)
            for file, size in files.items()
        ):
            return False
        for file in self.folder.iterdir():
            if size := files.get(file, 0):
                os.truncate(file, size)
            elif file.name != STATE:
                file.unlink()
        self.counts.take(state["counts"])
        self._sizes = {(split, first): sizes for split, first, *sizes in state["sizes"]}
        self._dropped = {(split, first) for split, first in state["dropped"]}
        self._digest, self._kept_bytes = state["digest"], state["kept_bytes"]
        return True


def _distinct(index: np.ndarray) -> np.ndarray:
    """Return entries of an index in the order of digests, the first of equals: int64 [n]."""
    order = np.lexsort((index["second"], index["first"]))
    first, second = index["first"][order], index["second"][order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return order[new]
