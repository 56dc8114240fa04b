"""From the texts of a source to packed tokens on disk, in an order that does not depend on files.

By digest: a fixed shuffle, so that neither the names of files nor their order (speeches by year)
decides what stands in a split that is cut short. A stream has no end to sort towards: it keeps the
order of arrival, and reading stops when both splits are full.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nullsae.config.corpora import Corpus, PretrainedTokenizer, TrainedTokenizer
from nullsae.core.files import atomic_path, read_json, room_for, write_json
from nullsae.corpus.boundaries import Boundaries, boundaries
from nullsae.corpus.documents import SPLITS, SplitName, split_of_digest
from nullsae.corpus.packing import Packed, Packer
from nullsae.corpus.reading import Counts, Document, Reader
from nullsae.corpus.sources import is_streamed
from nullsae.corpus.spool import NotKeptError, Spool
from nullsae.corpus.tokenizer import Encoder, load_tokenizer, save_tokenizer, train_tokenizer

log = logging.getLogger(__name__)

ENCODE_BATCH_DOCUMENTS = 64
# UTF-8 bytes of text read from a stream per wanted token before a tokenizer is trained on them.
TRAINING_BYTES_PER_TOKEN = 4
# UTF-8 bytes of text kept per wanted token: tokenizers of large vocabularies take four or five.
KEPT_BYTES_PER_TOKEN = 16
# A run after a kill encodes no more tokens again than these.
CHECKPOINT_TOKENS = 2**22
DIGEST_BYTES = 16

Texts = Callable[[], Iterable[str]]
"""The texts of a source from its start, at each call."""


def wanted_tokens(corpus: Corpus) -> dict[SplitName, int | None]:
    """Tokens that the config asks for in each split; None for all."""
    return {"sae_train": corpus.sae_train_tokens, "eval": corpus.eval_tokens}


@runtime_checkable
class StreamedTexts(Protocol):
    """Texts that can be read on from where an earlier run stood."""

    def __next__(self) -> str: ...

    def state(self) -> dict[str, Any] | None:
        """Where they stand, behind the last text; None where nobody can say."""

    def go_on(self, state: dict[str, Any]) -> bool:
        """Go there before the first text; says whether that can be."""


class Documents(Protocol):
    """The distinct documents of a source in the order in which they are packed."""

    counts: Counts

    @property
    def digest(self) -> str:
        """One digest of the set of documents read."""

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """All but the first `skip`."""

    def state(self) -> dict[str, Any] | None:
        """What a later run needs to go on after the last document; None where none can."""

    def go_on(self, state: dict[str, Any] | None) -> bool:
        """Go on from a state; says whether that can be. Nothing was read before."""

    def training_texts(self) -> Iterator[str]:
        """What a tokenizer is trained on: texts of `sae_train`."""

    def finish(self) -> None:
        """Read what must be read whether it was packed or not."""


class Arrivals:
    """Distinct documents of a stream in the order of arrival."""

    def __init__(self, texts: Iterable[str], corpus: Corpus, folder: Path) -> None:
        """A stream from its start, and a folder for what a later run needs."""
        self._texts, self._reader = texts, Reader(texts, corpus.eval_share)
        self._stream = self._arriving()
        self._corpus, self._head, self._state = corpus, folder / "head", folder / "head.json"
        self._digests, self._new, self._n_digests = folder / "digests", bytearray(), 0
        self._is_behind_head = False
        """Whether the stream stands behind the documents of the head, which are packed first."""
        self.counts = self._reader.counts

    def _arriving(self) -> Iterator[Document]:
        for document in self._reader:
            self._new += document.digest
            yield document

    @property
    def digest(self) -> str:
        return self._reader.digest()

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """The rest of the head, and all that the stream has from where it stands."""
        head: Iterator[Document] = iter(())
        if self._is_behind_head:
            head = _read_documents(self._head, self._corpus.eval_share)
        return chain(islice(head, skip, None), self._stream)

    def state(self) -> dict[str, Any] | None:
        """Digests go into a file, which grows; the rest is small."""
        stands = self._texts.state() if isinstance(self._texts, StreamedTexts) else None
        if stands is None:
            self._new.clear()
            return None
        with room_for(self._digests), open(self._digests, "ab") as file:
            file.truncate(self._n_digests * DIGEST_BYTES)
            file.write(self._new)
        self._n_digests += len(self._new) // DIGEST_BYTES
        self._new.clear()
        own = {"n_digests": self._n_digests, "is_behind_head": self._is_behind_head}
        return {**own, "texts": stands, "counts": asdict(self.counts)}

    def go_on(self, state: dict[str, Any] | None) -> bool:
        """What was read before is not read again, but for the files of the data set at hand."""
        if state is None or not isinstance(self._texts, StreamedTexts):
            return False
        digests = self._digests.read_bytes() if self._digests.is_file() else b""
        n_bytes = state["n_digests"] * DIGEST_BYTES
        if len(digests) < n_bytes or not self._texts.go_on(state["texts"]):
            return False
        self._n_digests, self._is_behind_head = state["n_digests"], state["is_behind_head"]
        self._reader.take(state["counts"], digests[:n_bytes])
        return True

    def training_texts(self) -> Iterator[str]:
        """The first of the stream, which are kept on disk to be encoded after."""
        # A stream without a wanted number of tokens does not pass the config's checks.
        missing = (self._corpus.sae_train_tokens or 0) * TRAINING_BYTES_PER_TOKEN
        with atomic_path(self._head) as temporary, open(temporary, "wb") as file:
            while missing > 0 and (document := next(self._stream, None)):
                data = document.text.encode()
                file.write(document.digest + len(data).to_bytes(8, "little") + data)
                if document.split == "sae_train":
                    missing -= len(data)
                    yield document.text
        self._is_behind_head = True
        write_json(self._state, {"n_read": self.counts.n_read})

    def finish(self) -> None:
        """A run before may have read more, to train the tokenizer: the counts are to tell that."""
        least = read_json(self._state, rebuild="")["n_read"] if self._state.is_file() else 0
        while self.counts.n_read < least and next(self._stream, None):
            pass


def _read_documents(file: Path, eval_share: float) -> Iterator[Document]:
    with open(file, "rb") as stream:
        while digest := stream.read(16):
            text = stream.read(int.from_bytes(stream.read(8), "little")).decode()
            yield Document(digest, split_of_digest(digest, eval_share), text)


class Preparation:
    """The work on one corpus, in a folder that a later run goes on from.

    After `pack`, `encoder` is its tokenizer, `bounds` what contexts begin and documents end with,
    `packers` hold the tokens of each split, and `counts` and `digest` say what was read.
    """

    encoder: Encoder
    bounds: Boundaries
    counts: Counts
    digest: str

    def __init__(self, corpus: Corpus, where: str, folder: Path) -> None:
        """Start, or go on.

        Args:
            corpus: the config section.
            where: its config key, for messages.
            folder: for this corpus and this version of the code only.
        """
        self.corpus, self.where, self.folder = corpus, where, folder
        self.packers: dict[SplitName, Packer] = {}

    @property
    def tokenizer_folder(self) -> Path:
        """Where a tokenizer lies that is trained here."""
        return self.folder / "tokenizer"

    def pack(self, texts: Texts, progress: Callable[[int, int], None] | None = None) -> None:
        """Encode documents in order until each split is full or the documents end.

        Args:
            texts: the source.
            progress: called with (tokens done, tokens in all).

        Raises:
            UserError: the source or the tokenizer cannot be read, or the disk is full.
        """
        if not isinstance(self.corpus.tokenizer, TrainedTokenizer):
            # Before the source is read, which may take long.
            self._take(load_tokenizer(self.corpus.tokenizer, where=f"{self.where}.tokenizer"))
        if is_streamed(self.corpus.source):
            self._pack(Arrivals(texts(), self.corpus, self.folder), progress)
            return
        least: dict[SplitName, int | None] = {
            split: None if n_tokens is None else n_tokens * KEPT_BYTES_PER_TOKEN
            for split, n_tokens in wanted_tokens(self.corpus).items()
        }
        if isinstance(self.corpus.tokenizer, TrainedTokenizer):
            least["sae_train"] = None
        for kept in (least, dict.fromkeys(SPLITS)):
            spool = Spool(self.folder / "documents", self.corpus.eval_share, kept)
            spool.fill(texts())
            try:
                self._pack(spool, progress)
                return
            except NotKeptError:
                log.info("%s: tokens are longer than expected; reading it again", self.where)

    def _pack(self, source: Documents, progress: Callable[[int, int], None] | None) -> None:
        tokenizer = self.corpus.tokenizer
        if isinstance(tokenizer, TrainedTokenizer):
            self._take(self._trained(tokenizer, source))
        n_done = self._restore(source)
        if isinstance(tokenizer, TrainedTokenizer) and not n_done:
            # What it was trained on is not to be read again.
            self._save(n_done, source)
        ordered, saved_at = source.documents(n_done), self._n_text
        while batch := list(islice(ordered, ENCODE_BATCH_DOCUMENTS)):
            lacking = [document for document in batch if not self.packers[document.split].full]
            encoded = self.encoder.encode([document.text for document in lacking])
            for document, ids in zip(lacking, encoded, strict=True):
                if not self.packers[document.split].full:
                    self.packers[document.split].add(ids)
            n_done += len(batch)
            if progress is not None:
                progress(*self._progress(n_done, source))
            if all(packer.full for packer in self.packers.values()):
                break
            if self._n_text - saved_at >= CHECKPOINT_TOKENS:
                self._save(n_done, source)
                saved_at = self._n_text
        source.finish()
        for packer in self.packers.values():
            packer.flush()
        self.counts, self.digest = source.counts, source.digest

    def _take(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.bounds = boundaries(encoder, self.corpus, self.where)

    def _trained(self, config: TrainedTokenizer, source: Documents) -> Encoder:
        """The tokenizer that an earlier run trained, or one that is trained now."""
        if self.tokenizer_folder.is_dir():
            trained = PretrainedTokenizer(
                kind="pretrained", path=str(self.tokenizer_folder.resolve())
            )
            return load_tokenizer(trained, where=f"{self.where}.tokenizer")
        encoder = train_tokenizer(source.training_texts(), config)
        save_tokenizer(encoder.tokenizer, self.tokenizer_folder)
        return encoder

    @property
    def _n_text(self) -> int:
        return sum(packer.packed.n_text for packer in self.packers.values())

    def _progress(self, n_done: int, source: Documents) -> tuple[int, int]:
        """Tokens done, and in all: as many as are wanted, or as the documents so far suggest."""
        done = total = 0
        for split, n_tokens in wanted_tokens(self.corpus).items():
            found = self.packers[split].n_tokens
            done += found if n_tokens is None else min(found, n_tokens)
            total += n_tokens or 0
        if None in wanted_tokens(self.corpus).values():
            total = done * sum(source.counts.n_kept.values()) // max(1, n_done)
        return done, max(done, total)

    def _restore(self, source: Documents) -> int:
        """Take up the tokens of an earlier run; returns the documents that they are from."""
        corpus, state = self.corpus, self.folder / "packed.json"
        for split, n_tokens in wanted_tokens(corpus).items():
            n_contexts = None if n_tokens is None else n_tokens // corpus.context_tokens
            self.packers[split] = Packer(
                n_contexts, corpus.context_tokens, self.bounds, self.folder / split
            )
        if state.is_file():
            found = read_json(state, rebuild="")
            packed = {split: Packed(*found["packed"][split]) for split in SPLITS}
            whole = all(packer.restore(packed[split]) for split, packer in self.packers.items())
            if whole and source.go_on(found["source"]):
                log.info("%s: going on after %d documents", self.where, found["n_documents"])
                return int(found["n_documents"])
        for packer in self.packers.values():
            packer.restore(Packed())
        return 0

    def _save(self, n_done: int, source: Documents) -> None:
        """What a run after a kill goes on from."""
        for packer in self.packers.values():
            packer.flush()
        packed = {split: packer.packed for split, packer in self.packers.items()}
        state = {"n_documents": n_done, "packed": packed, "source": source.state()}
        write_json(self.folder / "packed.json", state)
