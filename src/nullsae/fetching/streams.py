"""A streamed data set cannot be had whole: the documents that a corpus reads of it, as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nullsae.config.corpora import Corpus, HubSource
from nullsae.core.files import atomic_path, content_key
from nullsae.core.progress import bar
from nullsae.fetching.items import Fetched, at

STREAM_FILE = "train.parquet"
STREAM_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Stream:
    """The documents of a streamed data set that a corpus reads, as a local data set."""

    corpus: Corpus
    source: HubSource
    home: Path
    """Folder as the overlay is to name it."""
    name: str = field(compare=False)
    where: str = field(compare=False)

    @property
    def folder(self) -> Path:
        """Its local data set, named by all that decides which documents are read."""
        return self.home / f"stream-{content_key(self.corpus.model_dump(mode='json'))}"

    @property
    def file(self) -> Path:
        """Its only file, which is there when all documents are."""
        return self.folder / STREAM_FILE

    def describe(self) -> str:
        """Its hub id and revision."""
        return f"stream {self.source.path}{at(self.source.revision)}"

    def fetch(self) -> Fetched:
        """Write the documents, unless they are there from before."""
        if not (was_there := self.file.is_file()):
            try:
                with atomic_path(self.file) as temporary:
                    _save_stream(self.corpus, self.source, self.name, temporary)
            except BaseException:
                self.folder.rmdir()
                raise
        return Fetched(self.file.stat().st_size, self.folder.resolve(), was_there)

    def overlay(self) -> dict[str, Any]:
        """The source section that reads the local data set, document by document as before."""
        path = str(self.folder)
        return {
            "kind": "hub",
            "path": path if self.folder.is_absolute() else f"./{path}",
            "name": None,
            "split": "train",
            "column": self.source.column,
            "revision": None,
            "streaming": True,
        }


class _Recorder:
    """Passes documents on and writes them, in their order, as one Parquet column."""

    def __init__(
        self, texts: Iterator[str], file: Path, column: str, show: Callable[[], None]
    ) -> None:
        self._texts, self._show = texts, show
        self._batch: list[str] = []
        self._schema = pa.schema([(column, pa.large_string())])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self._batch.append(text)
            if len(self._batch) == STREAM_BATCH_DOCUMENTS:
                self._write()
            yield text

    def _write(self) -> None:
        self._writer.write_table(pa.table([pa.array(self._batch, pa.large_string())], self._schema))
        self._batch.clear()
        self._show()

    def close(self) -> None:
        """Write the rest."""
        if self._batch:
            self._write()
        self._writer.close()


def _save_stream(corpus: Corpus, source: HubSource, name: str, file: Path) -> None:
    """Write the documents that `prepare_corpus` takes from a stream, by reading as it does."""
    from nullsae.corpus.documents import SplitName
    from nullsae.corpus.prepare import Packer, Reader, pack, wanted_tokens
    from nullsae.corpus.sources import documents

    where = f"config: corpora.{name}"
    total = sum(n_tokens or 0 for n_tokens in wanted_tokens(corpus).values())
    packers: dict[SplitName, Packer] = {}
    with bar(f"corpus {name}", "tokens") as progress:

        def show() -> None:
            progress(min(total, sum(packer.n_tokens for packer in packers.values())), total)

        texts = documents(source, where=f"{where}.source")
        with closing(_Recorder(texts, file, source.column, show)) as recorder:
            pack(Reader(recorder, corpus.eval_share), packers, corpus, where)
