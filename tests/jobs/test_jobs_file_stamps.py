"""The user's files count by name and bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nullsae.config.corpora import Corpus, FilesSource, HubSource, TrainedTokenizer
from nullsae.corpus.sources import documents
from nullsae.jobs import file_stamps
from nullsae.jobs.corpus import corpus_key
from nullsae.jobs.file_stamps import SETTLED_NANOSECONDS, named_file, stamps
from nullsae.jobs.resources import known_corpus


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(file: Path, text: str, *, seconds_ago: int = 60) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    then = file.stat().st_mtime_ns - seconds_ago * 10**9
    os.utime(file, ns=(then, then))
    return file


def stamped(*files: Path) -> tuple[str, ...]:
    file_stamps._content.cache_clear()  # as in a new process
    return stamps(map(named_file, files))


def test_a_touched_copied_or_moved_file_is_the_same(home: Path) -> None:
    file = write(home / "one/text.jsonl", "a text")
    before = stamped(file)
    os.utime(file)
    assert stamped(file) == before
    copy = home / "another checkout/text.jsonl"
    copy.parent.mkdir()
    shutil.copyfile(file, copy)
    assert stamped(copy) == before
    assert stamped(file.rename(home / "text.jsonl")) == before


def test_another_text_or_name_is_another_file(home: Path) -> None:
    file = write(home / "text.jsonl", "a text")
    before = stamped(file)
    assert stamped(write(file, "a test")) != before
    assert stamped(write(home / "test.jsonl", "a text")) != before


def test_a_file_is_read_once_however_many_processes_look(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(home / "text.jsonl", "a text")
    before = stamped(file)

    def never(path: str) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(file_stamps, "checksum", never)
    assert stamped(file) == before
    write(file, "another text")
    with pytest.raises(AssertionError, match="was read again"):
        stamped(file)


def test_a_file_that_may_still_change_is_not_remembered(home: Path) -> None:
    """Two edits within one clock tick may leave the same size and time."""
    file = write(home / "text.jsonl", "a text", seconds_ago=0)
    first, time_ns = stamped(file), file.stat().st_mtime_ns
    file.write_text("a test", encoding="utf-8")
    os.utime(file, ns=(time_ns, time_ns))
    assert SETTLED_NANOSECONDS > 10**9
    assert stamped(file) != first


def test_a_cache_that_cannot_be_written_or_is_damaged_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(home / "text.jsonl", "a text")
    before = stamped(file)
    (note,) = (home / "cache/nullsae/file_hashes").iterdir()
    for damage in (b"", b"\xff\xff", b"6 nonsense"):
        note.write_bytes(damage)
        assert stamped(file) == before
    write(home / "a file", "in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "a file"))
    assert stamped(file) == before


def key_of(corpus: Corpus) -> str:
    """Return a corpus's key as a new process would."""
    file_stamps._content.cache_clear()
    corpus_key.cache_clear()
    return corpus_key("texts", corpus)


@pytest.mark.parametrize(
    "path", ["~/texts/a[1].txt", "texts/a[1].txt", "~/texts/*.txt", "**/*.txt"]
)
def test_an_edit_of_a_text_changes_its_corpus_however_its_path_is_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    file = write(home / "texts/a[1].txt", "a text")
    corpus = Corpus(
        source=FilesSource(kind="files", paths=(path,)), tokenizer=TrainedTokenizer(kind="train")
    )

    before = key_of(corpus)
    write(file, "another text, which is longer")
    assert key_of(corpus) != before
    # The same files as the corpus is read from.
    (text,) = documents(corpus.source)
    size = known_corpus(corpus)
    assert size is not None
    assert size.read_tokens == len(text) // 3


@pytest.mark.parametrize("path", ["~/data", "data"])
def test_an_edit_of_a_local_data_set_changes_its_corpus(
    home: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    file = write(home / "data/train/part-0.jsonl", '{"text": "a text"}')
    keys = dict.fromkeys(("sae_train_tokens", "eval_tokens"), 1000)
    corpus = Corpus(
        source=HubSource(kind="hub", path=path), tokenizer=TrainedTokenizer(kind="train"), **keys
    )

    before = key_of(corpus)
    os.utime(file)
    assert key_of(corpus) == before
    write(file, '{"text": "another text"}')
    assert key_of(corpus) != before
