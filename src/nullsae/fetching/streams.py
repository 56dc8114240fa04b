"""A streamed data set cannot be had whole: the documents that a corpus reads of it, as a file."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
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


def _recorded(texts: Iterator[str], file: Path, column: str) -> Generator[str]:
    """Pass documents on and write them, in their order, as one Parquet column."""
    schema = pa.schema([(column, pa.large_string())])
    batch: list[str] = []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def write() -> None:
            writer.write_table(pa.table([pa.array(batch, pa.large_string())], schema))
            batch.clear()

        try:
            for text in texts:
                batch.append(text)
                if len(batch) == STREAM_BATCH_DOCUMENTS:
                    write()
                yield text
        finally:
            if batch:
                write()


def _save_stream(corpus: Corpus, source: HubSource, name: str, file: Path) -> None:
    """Write the documents that `prepare_corpus` takes from a stream, by reading as it does."""
    from nullsae.corpus.preparation import Preparation
    from nullsae.corpus.prepare import check_amounts
    from nullsae.corpus.sources import documents

    where = f"config: corpora.{name}"
    with (
        bar(f"corpus {name}", "tokens") as progress,
        TemporaryDirectory(dir=file.parent, prefix=".tokens.") as folder,
        closing(
            _recorded(documents(source, where=f"{where}.source"), file, source.column)
        ) as texts,
    ):
        made = Preparation(corpus, where, Path(folder))
        made.pack(lambda: texts, progress)
        check_amounts(made, corpus, where)
