"""Documents on disk are read back as from memory, whatever happened in between."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.corpus import spool as spools
from nullsae.corpus.digests import DigestSet
from nullsae.corpus.documents import SPLITS, SplitName
from nullsae.corpus.reading import Document, Reader
from nullsae.corpus.spool import NotKeptError, Spool

ALL: dict[SplitName, int | None] = dict.fromkeys(SPLITS)
SHARE = 0.3


class KilledError(Exception):
    """Stands for the end of a process: nothing is written afterwards."""


def in_memory(texts: list[str]) -> tuple[list[Document], Reader]:
    """Return the documents sorted in memory."""
    reader = Reader(texts, SHARE)
    return sorted(reader), reader


def until(texts: list[str], n: int) -> Iterator[str]:
    yield from texts[:n]
    raise KilledError


def some_texts(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = [f"{rng.randrange(n)} " + "é\r\n" * rng.randrange(5) for _ in range(n)]
    return [*texts, "", " \n", "\ufeff" + texts[0]]


# Digests that differ only at either end, with null bytes at both.
ends = st.binary(min_size=2, max_size=2).map(lambda b: b[:1] + b"\0" * 14 + b[1:])
digests = st.lists(st.one_of(ends, st.binary(min_size=16, max_size=16)), max_size=60)


@settings(deadline=None)
@given(digests, st.integers(1, 9))
def test_a_digest_set_behaves_like_a_set(given_digests: list[bytes], max_recent: int) -> None:
    found, seen = DigestSet(max_recent), set()
    for digest in given_digests:
        assert found.add(digest) == (digest not in seen)
        seen.add(digest)
        assert len(found) == len(seen)
    whole = hashlib.blake2b(b"".join(sorted(seen)), digest_size=16).hexdigest()
    assert found.digest() == whole


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(max_size=8), max_size=40), st.sampled_from([1, 100, 10**6]))
def test_a_spool_equals_sorting_in_memory(texts: list[str], buffer: int) -> None:
    wanted, reader = in_memory(texts)
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spools, "BUFFER_BYTES", buffer)
        spool = Spool(Path(name) / "s", SHARE, ALL)
        spool.fill(texts)
        for skip in {0, 1, len(wanted) // 2, len(wanted)}:
            assert list(spool.documents(skip)) == wanted[skip:]
        assert list(spool.training_texts()) == [d.text for d in wanted if d.split == "sae_train"]
        assert spool.counts == reader.counts
        assert spool.digest == reader.digest()


@pytest.mark.parametrize("killed_after", [0, 1, 7, 50, 120, 122])
@pytest.mark.parametrize("left", ["", "longer", "shorter"])
def test_a_spool_resumes_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int, left: str
) -> None:
    monkeypatch.setattr(spools, "BUFFER_BYTES", 500)
    texts = some_texts(120)
    wanted, reader = in_memory(texts)
    folder = tmp_path / "s"
    with pytest.raises(KilledError):
        Spool(folder, SHARE, ALL).fill(until(texts, killed_after))
    if left and folder.is_dir():
        # A write that the state does not know yet, in old files and a new one; or a lost one.
        for file in folder.glob("*.texts"):
            data = file.read_bytes()
            file.write_bytes(data + b"more" if left == "longer" else data[:-1])
        (folder / "eval-ff.index").write_bytes(b"\1" * 24)
    again = Spool(folder, SHARE, ALL)
    again.fill(texts)
    assert list(again.documents()) == wanted
    assert (again.counts, again.digest) == (reader.counts, reader.digest())
    # A later run finds everything.
    third = Spool(folder, SHARE, ALL)
    third.fill(until([], 0))
    assert list(third.documents()) == wanted
    assert (third.counts, third.digest) == (reader.counts, reader.digest())


def test_a_spool_does_not_read_stored_texts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "BUFFER_BYTES", 500)
    texts = some_texts(400)
    with pytest.raises(KilledError):
        Spool(tmp_path, SHARE, ALL).fill(until(texts, 300))
    # Other texts in place of those already read.
    again = Spool(tmp_path, SHARE, ALL)
    again.fill(["x"] * 200 + texts[200:])
    assert list(again.documents()) == in_memory(texts)[0]


@pytest.mark.parametrize("split", SPLITS)
def test_no_more_text_is_stored_than_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: SplitName
) -> None:
    monkeypatch.setattr(spools, "BUFFER_BYTES", 5000)
    texts = [f"{i} " + "x" * 100 for i in range(3000)]
    wanted, reader = in_memory(texts)
    spool = Spool(tmp_path, SHARE, {**ALL, split: 20_000})
    spool.fill(texts)
    on_disk = sum(file.stat().st_size for file in tmp_path.glob(f"{split}-*.texts"))
    largest = max(file.stat().st_size for file in tmp_path.glob("*.texts"))
    assert 20_000 <= on_disk < 20_000 + 2 * largest
    # Counts still cover the whole source.
    assert (spool.counts, spool.digest) == (reader.counts, reader.digest())
    before = 0 if split == "eval" else spool.counts.n_kept["eval"]
    found: list[Document] = []
    with pytest.raises(NotKeptError):
        found.extend(spool.documents(before))
    assert found == wanted[before : before + len(found)]
    assert sum(len(document.text) for document in found) >= 20_000
