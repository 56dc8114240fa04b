"""A streamed data set is not downloaded in full, only the documents that a corpus reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nullsae.config.corpora import Corpus, HubSource
from nullsae.core.files import atomic_path, content_key, room_for
from nullsae.core.progress import bar
from nullsae.fetching.items import Fetched, at
from nullsae.jobs.corpus import prepare_corpus

if TYPE_CHECKING:
    from nullsae.corpus.preparation import StreamedTexts

STREAM_FILE = "train.parquet"
STREAM_BATCH_DOCUMENTS, STREAM_CHARACTERS = 1024, 2**24


@dataclass(frozen=True)
class Stream:
    """The documents of a streamed data set that a corpus reads, as a local data set."""

    corpus: Corpus
    source: HubSource
    home: Path
    """The folder, as the overlay will name it."""
    name: str = field(compare=False)
    where: str = field(compare=False)

    @property
    def folder(self) -> Path:
        """Its local data set, named by everything that determines which documents are read."""
        return self.home / f"stream-{content_key(self.corpus.model_dump(mode='json'))}"

    @property
    def file(self) -> Path:
        """Its only file, which exists once all documents are in it."""
        return self.folder / STREAM_FILE

    def describe(self) -> str:
        """Return its hub id and revision."""
        return f"stream {self.source.path}{at(self.source.revision)}"

    def fetch(self) -> Fetched:
        """Write the documents, unless they exist from before."""
        if not (was_there := self.file.is_file()):
            _save_stream(self.corpus, self.source, self.name, self.file)
        return Fetched(self.file.stat().st_size, self.folder.resolve(), was_there)

    def overlay(self) -> dict[str, Any]:
        """Return the source section that reads the local data set, document by document."""
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


class Recorded:
    """Texts of a stream that are saved to a file as they come, so that a later run can resume."""

    def __init__(self, texts: StreamedTexts, file: Path) -> None:
        """Start a stream, or resume it with the file of an earlier run."""
        self._texts = texts
        self._file = open(file, "ab")  # noqa: SIM115 - closed by `close`
        self._goes_on = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self._goes_on:
            self._file.truncate(0)
            self._goes_on = True
        text = next(self._texts)
        try:
            data = text.encode()
        except UnicodeEncodeError:  # halves of surrogate pairs, which a corpus replaces as well
            data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        self._file.write(len(data).to_bytes(8, "little") + data)
        return text

    def state(self) -> dict[str, Any] | None:
        """Return the position of the texts, and the size of the file."""
        stands = self._texts.state()
        with room_for(Path(self._file.name)):
            self._file.flush()
        n_bytes = os.fstat(self._file.fileno()).st_size
        return None if stands is None else {"n_bytes": n_bytes, "texts": stands}

    def go_on(self, state: dict[str, Any]) -> bool:
        """Resume from a state; return False if the file is too short or the texts cannot."""
        if os.fstat(self._file.fileno()).st_size < state["n_bytes"]:
            return False
        if not self._texts.go_on(state["texts"]):
            return False
        self._file.truncate(state["n_bytes"])
        self._goes_on = True
        return True

    def close(self) -> None:
        """Close the file, and delete it if it is empty."""
        file = Path(self._file.name)
        with room_for(file):
            self._file.close()
        if not file.stat().st_size:
            file.unlink()


def _write_parquet(texts: Path, file: Path, column: str) -> None:
    """Write recorded texts, in their order, as one Parquet column."""
    schema = pa.schema([(column, pa.large_string())])
    batch: list[str] = []
    with (
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
        open(texts, "rb") as stream,
    ):
        while size := stream.read(8):
            batch.append(stream.read(int.from_bytes(size, "little")).decode())
            if len(batch) == STREAM_BATCH_DOCUMENTS or sum(map(len, batch)) > STREAM_CHARACTERS:
                writer.write_table(pa.table([pa.array(batch, pa.large_string())], schema))
                batch.clear()
        if batch:
            writer.write_table(pa.table([pa.array(batch, pa.large_string())], schema))


def _save_stream(corpus: Corpus, source: HubSource, name: str, file: Path) -> None:
    """Write the documents that `prepare_corpus` takes from a stream, by reading in the same way.

    After a kill, a new run resumes from the last checkpoint, in a folder next to the result.
    """
    from nullsae.corpus.hub_texts import HubTexts
    from nullsae.corpus.preparation import Preparation
    from nullsae.corpus.prepare import check_amounts, work_folder

    where = f"config: corpora.{name}"
    work = file.parent.with_name(f"{file.parent.name}.{prepare_corpus.code()}.work")
    with bar(f"corpus {name}", "tokens") as progress, work_folder(work) as folder:
        made = Preparation(corpus, where, folder)
        stream = HubTexts(source, f"{where}.source")
        with closing(Recorded(stream, folder / "texts")) as texts:
            made.pack(lambda: texts, progress)
        check_amounts(made, corpus, where)
        with atomic_path(file) as temporary:
            _write_parquet(folder / "texts", temporary, source.column)
