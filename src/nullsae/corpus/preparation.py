"""From the texts of a source to packed tokens on disk, in an order independent of files.

Documents are sorted by digest, a fixed shuffle, so that neither names nor order of files (speeches
by year) determine which texts a truncated split contains. A stream has no end to sort towards: it
keeps the order of arrival, and reading stops when both splits are full.
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
from nullsae.corpus.boundaries import Boundaries, UnfitError, boundaries
from nullsae.corpus.documents import SPLITS, SplitName, split_of_digest
from nullsae.corpus.packing import Packed, Packer
from nullsae.corpus.reading import Counts, Document, Reader
from nullsae.corpus.sources import is_streamed
from nullsae.corpus.spool import NotKeptError, Spool
from nullsae.corpus.tokenizer import Encoder, load_tokenizer, save_tokenizer, train_tokenizer

log = logging.getLogger(__name__)

ENCODE_BATCH_DOCUMENTS = 64
# UTF-8 bytes of text read from a stream per wanted token to train a tokenizer.
TRAINING_BYTES_PER_TOKEN = 4
# UTF-8 bytes of text stored per wanted token; tokenizers of large vocabularies need four or five.
KEPT_BYTES_PER_TOKEN = 16
# A run after a kill encodes at most this many tokens again.
CHECKPOINT_TOKENS = 2**22
DIGEST_BYTES = 16
# Characters of each document in a sample, and shares of them without a token of which a warning
# tells, or which are refused.
SAMPLE_CHARACTERS = 4_000
MOST_WITHOUT_TOKEN, FEWEST_REFUSED = 0.01, 0.5

Texts = Callable[[], Iterable[str]]
"""Yields the texts of a source from its start, at each call."""


def wanted_tokens(corpus: Corpus) -> dict[SplitName, int | None]:
    """Return the tokens that the config requests for each split; None for all."""
    return {"sae_train": corpus.sae_train_tokens, "eval": corpus.eval_tokens}


@runtime_checkable
class StreamedTexts(Protocol):
    """Texts that can be resumed where an earlier run stopped."""

    def __next__(self) -> str: ...

    def state(self) -> dict[str, Any] | None:
        """Return the position after the last text; None if it is unknown."""

    def go_on(self, state: dict[str, Any]) -> bool:
        """Go there before the first text; return whether that is possible."""


class Documents(Protocol):
    """The distinct documents of a source in the order in which they are packed."""

    counts: Counts

    @property
    def digest(self) -> str:
        """One digest of the set of documents read."""

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """Yield all but the first `skip`."""

    def state(self) -> dict[str, Any] | None:
        """Return what a later run needs to resume after the last document; None if impossible."""

    def go_on(self, state: dict[str, Any] | None) -> bool:
        """Resume from a state, before anything is read; return whether that is possible."""

    def training_texts(self) -> Iterator[str]:
        """Yield the texts to train a tokenizer on, from `sae_train`."""

    def finish(self) -> None:
        """Read what must be read even if it is not packed."""


class Arrivals:
    """Distinct documents of a stream in the order of arrival."""

    def __init__(self, texts: Iterable[str], corpus: Corpus, folder: Path) -> None:
        """Start a stream, with a folder for what a later run needs."""
        self._texts, self._reader = texts, Reader(texts, corpus.eval_share)
        self._stream = self._arriving()
        self._corpus, self._head, self._state = corpus, folder / "head", folder / "head.json"
        self._digests, self._new, self._n_digests = folder / "digests", bytearray(), 0
        self._is_behind_head = False
        """Whether the stream is past the documents of the head, which are packed first."""
        self.counts = self._reader.counts

    def _arriving(self) -> Iterator[Document]:
        for document in self._reader:
            self._new += document.digest
            yield document

    @property
    def digest(self) -> str:
        return self._reader.digest()

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """Yield the rest of the head, then the rest of the stream."""
        head: Iterator[Document] = iter(())
        if self._is_behind_head:
            head = _read_documents(self._head, self._corpus.eval_share)
        return chain(islice(head, skip, None), self._stream)

    def state(self) -> dict[str, Any] | None:
        """Append digests to a growing file; return the rest of the state, which is small."""
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
        """Resume without reading earlier texts again, except files of the current data set."""
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
        """Yield the first texts of the stream, and save them to be encoded later."""
        # The config's checks require a number of tokens for streams.
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
        """Read as far as an earlier run did to train the tokenizer, so that counts agree."""
        least = read_json(self._state, rebuild="")["n_read"] if self._state.is_file() else 0
        while self.counts.n_read < least and next(self._stream, None):
            pass


def _read_documents(file: Path, eval_share: float) -> Iterator[Document]:
    with open(file, "rb") as stream:
        while digest := stream.read(16):
            text = stream.read(int.from_bytes(stream.read(8), "little")).decode()
            yield Document(digest, split_of_digest(digest, eval_share), text)


class Preparation:
    """The work on one corpus, in a folder from which a later run resumes.

    After `pack`, `encoder` is its tokenizer, `bounds` are the tokens around contexts and documents,
    `packers` have the tokens of each split, and `counts` and `digest` describe what was read.
    """

    encoder: Encoder
    bounds: Boundaries
    counts: Counts
    digest: str

    def __init__(self, corpus: Corpus, where: str, folder: Path) -> None:
        """Start or resume.

        Args:
            corpus: the config section.
            where: its config key, for messages.
            folder: used only for this corpus and this version of the code.
        """
        self.corpus, self.where, self.folder = corpus, where, folder
        self.packers: dict[SplitName, Packer] = {}

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of a tokenizer that is trained here."""
        return self.folder / "tokenizer"

    def pack(self, texts: Texts, progress: Callable[[int, int], None] | None = None) -> None:
        """Encode documents in order until each split is full or the documents end.

        Args:
            texts: the source.
            progress: called with (tokens done, tokens in total).

        Raises:
            UserError: the source or the tokenizer cannot be read, or the disk is full.
        """
        if not isinstance(self.corpus.tokenizer, TrainedTokenizer):
            # Fail before reading the source, which may take long.
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
            # So that its training texts need not be read again.
            self._save(n_done, source)
        ordered, saved_at, first = source.documents(n_done), self._n_text, True
        while batch := list(islice(ordered, ENCODE_BATCH_DOCUMENTS)):
            if first:
                self._check_cover([document.text[:SAMPLE_CHARACTERS] for document in batch])
            first = False
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

    def _check_cover(self, texts: list[str]) -> None:
        """Check that the tokenizer has tokens for a sample of the text.

        Raises:
            UnfitError: it has none for most of it.
        """
        share = self.encoder.share_without_token(texts)
        if share > MOST_WITHOUT_TOKEN:
            said = (
                f"{self.where}.tokenizer: it has no token, or only the one for unknown text, for "
                f"{share:.0%} of the characters of {len(texts)} documents"
            )
            if share > FEWEST_REFUSED:
                raise UnfitError(f"{said}; take one that was made for such text")
            log.warning("warning: %s, which the study does not see", said)

    def _take(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.bounds = boundaries(encoder, self.corpus, self.where)

    def _trained(self, config: TrainedTokenizer, source: Documents) -> Encoder:
        """Return the tokenizer that an earlier run trained, or train one now."""
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
        """Return tokens done and in total: as wanted, or estimated from the documents so far."""
        done = total = 0
        for split, n_tokens in wanted_tokens(self.corpus).items():
            found = self.packers[split].n_tokens
            done += found if n_tokens is None else min(found, n_tokens)
            total += n_tokens or 0
        if None in wanted_tokens(self.corpus).values():
            total = done * sum(source.counts.n_kept.values()) // max(1, n_done)
        return done, max(done, total)

    def _restore(self, source: Documents) -> int:
        """Reuse the tokens of an earlier run; return how many documents they are from."""
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
                log.info("%s: resuming after %d documents", self.where, found["n_documents"])
                return int(found["n_documents"])
        for packer in self.packers.values():
            packer.restore(Packed())
        return 0

    def _save(self, n_done: int, source: Documents) -> None:
        """Save the state from which a run after a kill resumes."""
        for packer in self.packers.values():
            packer.flush()
        packed = {split: packer.packed for split, packer in self.packers.items()}
        state = {"n_documents": n_done, "packed": packed, "source": source.state()}
        write_json(self.folder / "packed.json", state)
