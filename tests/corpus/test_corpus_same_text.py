"""One text gives one corpus, whichever program wrote the file."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsae.config.corpora import FilesSource
from nullsae.core.errors import UserError
from nullsae.corpus.documents import Replaced, normalize
from nullsae.corpus.reading import Reader
from nullsae.corpus.sources import documents, rows_at_once
from refusing import refused

TEXTS = ["a line\nand another", "Grüße, 世界 \U0001f600", "", "plain"]


def read(file: Path, column: str = "text") -> list[str]:
    source = FilesSource(kind="files", paths=(str(file),), column=column)
    return list(documents(source, where="config: corpora.c.source"))


ARRAYS: dict[str, Callable[[], pa.Array]] = {
    "string": lambda: pa.array(TEXTS),
    "large_string": lambda: pa.array(TEXTS, pa.large_string()),
    "string_view": lambda: pa.array(TEXTS, pa.string_view()),
    "binary": lambda: pa.array([t.encode() for t in TEXTS], pa.binary()),
    "large_binary": lambda: pa.array([t.encode() for t in TEXTS], pa.large_binary()),
    "binary_view": lambda: pa.array([t.encode() for t in TEXTS], pa.binary_view()),
    "category": lambda: pa.array(TEXTS).dictionary_encode(),
    "category of large strings": lambda: pa.array(TEXTS, pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_every_parquet_type_of_text_is_read_alike(kind: str, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text.lang": ["en"] * 4, "text": ARRAYS[kind]()}), tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet") == TEXTS


def test_a_column_may_have_dots_in_its_name_or_be_in_a_struct(tmp_path: Path) -> None:
    nested = pa.array([{"text": t, "n": 1} for t in TEXTS])
    pq.write_table(pa.table({"doc.text": TEXTS, "meta": nested}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "doc.text") == TEXTS
    assert read(tmp_path / "a.parquet", "meta.text") == TEXTS
    with pytest.raises(UserError, match=r"column: .*no column 'meta.other'; it has doc.text, meta"):
        read(tmp_path / "a.parquet", "meta.other")
    with pytest.raises(UserError, match=r"'meta' in .* is struct<.*>, not text"):
        read(tmp_path / "a.parquet", "meta")
    lines = "\n".join(json.dumps({"meta": {"text": t}}) for t in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    assert read(tmp_path / "a.jsonl", "meta.text") == TEXTS


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_bytes_that_are_not_text_are_refused_with_their_column(
    tmp_path: Path, kind: pa.DataType
) -> None:
    # Labelled as text without validation, as in a damaged file.
    column = pa.array([b"\xff\xfe"], pa.binary()).view(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"'text' in .* is not UTF-8 text"):
        read(tmp_path / "a.parquet")


def test_a_column_of_nulls_gives_empty_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["", ""]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_a_byte_order_mark_determines_the_encoding(encoding: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    (tmp_path / "a.txt").write_bytes((mark + TEXTS[1]).encode(encoding))
    lines = mark + "".join(json.dumps({"text": t}, ensure_ascii=False) + "\r\n" for t in TEXTS)
    (tmp_path / "a.jsonl").write_bytes(lines.encode(encoding))
    assert read(tmp_path / "a.txt") == [TEXTS[1]]
    assert read(tmp_path / "a.jsonl") == TEXTS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Two lines\nof ASCII.\n", "Привет, мир. Это текст.\n"])
def test_zero_bytes_reveal_the_encoding_without_a_mark(
    encoding: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "a.jsonl").write_bytes(f'{{"text": "{text.strip()}"}}\n'.encode(encoding))
    assert read(tmp_path / "a.txt") == [text]
    (tmp_path / "b.txt").write_bytes(b"a few\0zero\0bytes in UTF-8\0")
    assert read(tmp_path / "b.txt") == ["a few\0zero\0bytes in UTF-8\0"]


def test_concatenated_files_are_read_as_one(tmp_path: Path) -> None:
    part = '\ufeff{"text": "one"}\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(part + part)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(part) + gzip.compress(part))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.jsonl.gz") == ["one", "one"]


def test_columns_with_the_same_name_are_refused(tmp_path: Path) -> None:
    both = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(both, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"column: .*a.parquet has several columns 'text'"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(("n_bytes", "n_rows"), [(100, 1024), (1_000_000, 16)])
def test_parquet_rows_in_memory_at_once_are_limited_in_size(n_bytes: int, n_rows: int) -> None:
    texts = [random.Random(n).randbytes(n_bytes // 2).hex() for n in range(4)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink, compression="none")
    file = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    assert rows_at_once(file.metadata) == n_rows


def test_text_in_another_encoding_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße".encode("cp1252"))
    with pytest.raises(UserError, match=r"a.txt: not UTF-8 .*iconv -f windows-1252 -t utf-8"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", [".gz", ".GZ"])
def test_compressed_text_is_read_as_if_it_were_not(suffix: str, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS)
    (tmp_path / f"a.JSONL{suffix}").write_bytes(gzip.compress(lines.encode()))
    assert read(tmp_path / f"a.JSONL{suffix}") == TEXTS
    for codec in ("zstd", "bz2", "lz4"):
        end = {"zstd": "zst"}.get(codec, codec)
        with pa.output_stream(str(tmp_path / f"b.txt.{end}"), compression=codec) as stream:
            stream.write(TEXTS[0].encode())
        assert read(tmp_path / f"b.txt.{end}") == [TEXTS[0]]
    (tmp_path / "c.txt.gz").write_bytes(b"no gzip at all")
    with pytest.raises(UserError, match=r"c.txt.gz: not readable"):
        read(tmp_path / "c.txt.gz")


def test_deep_json_is_one_line_that_names_its_position(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match=r"a.jsonl, line 1: not JSON"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (gzip.compress(b"a text"), "ending .gz"),
        (pa.Codec("zstd").compress(b"a text").to_pybytes(), "ending .zst"),
        (b"BZh91AY&SY", "ending .bz2"),
        (b"PK\x03\x04", "unpack it"),
        (b"PAR1\x15\x04", "ending .parquet"),
        (b"%PDF-1.7\n", "extract its text"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_file_that_is_no_text_is_not_read_as_one(
    start: bytes, said: str, suffix: str, tmp_path: Path
) -> None:
    """The pointers of Git LFS are even valid text."""
    (tmp_path / f"a{suffix}").write_bytes(start)
    found = refused(read, tmp_path / f"a{suffix}")
    assert found.startswith(f"{tmp_path / 'a'}{suffix}: this is ")
    assert said in found


def test_a_pointer_instead_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 0\n")
    assert "git lfs pull" in refused(read, tmp_path / "a.parquet")


def test_the_byte_that_is_no_text_is_named_wherever_it_is(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 3000}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(line * 20 + b'{"text": "caf\xe9"}\n')
    assert "not UTF-8 (invalid continuation byte at 0xe9)" in refused(read, tmp_path / "a.jsonl")


def test_a_column_of_objects_in_lists_is_named(tmp_path: Path) -> None:
    messages = [[{"content": text}] for text in TEXTS]
    pq.write_table(pa.table({"messages": messages}), tmp_path / "a.parquet")
    rows = "".join(json.dumps({"messages": one}) + "\n" for one in messages)
    (tmp_path / "a.jsonl").write_text(rows)
    for name in ("a.parquet", "a.jsonl"):
        said = refused(read, tmp_path / name, "messages.content")
        assert said.startswith("config: corpora.c.source.column: 'messages' in ")
        assert "list" in said
        assert said.endswith("not an object with keys")


def test_an_object_that_is_null_has_an_empty_text_in_every_format(tmp_path: Path) -> None:
    rows = [{"meta": {"text": "a"}}, {"meta": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.parquet", "a.jsonl"):
        assert read(tmp_path / name, "meta.text") == ["a", ""]


# --- normalization


def test_lone_surrogates_become_the_replacement_character_and_are_counted() -> None:
    replaced = Replaced()
    assert normalize("cut \ud83d here", replaced) == "cut \ufffd here"
    assert normalize("\udc00\udc00", replaced) == "\ufffd\ufffd"
    assert normalize("whole \ud83d\ude00, half \ude00", replaced) == "whole \U0001f600, half \ufffd"
    assert replaced.surrogates == 4


def test_line_ends_and_leading_marks_are_normalized_and_counted() -> None:
    replaced = Replaced()
    assert normalize("\ufeffa\r\nb\rc\n", replaced) == "a\nb\nc\n"
    assert normalize("a\ufeffb", replaced) == "a\ufeffb"
    assert (replaced.line_ends, replaced.byte_order_marks, replaced.surrogates) == (2, 1, 0)


@given(st.text(st.characters(codec=None)))
def test_a_normalized_text_can_be_encoded_and_does_not_change_again(text: str) -> None:
    once = normalize(text, Replaced())
    once.encode()
    again = Replaced()
    if not once.startswith("\ufeff"):
        assert normalize(once, again) == once
        assert again == Replaced()


def test_copies_that_differ_in_line_ends_or_marks_are_one_document() -> None:
    copies = ["a\nb", "a\r\nb", "\ufeffa\nb", "a\rb"]
    reader = Reader([*copies, "other"], 0.5)
    assert [document.text for document in reader] == ["a\nb", "other"]
    assert reader.counts.n_repeated == 3
    assert reader.counts.replaced == Replaced(line_ends=2, byte_order_marks=1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_each_script_is_read_in_each_encoding_without_a_mark(tmp_path: Path, encoding: str) -> None:
    texts = [
        "it is “so”, naïve",
        "привет, мир",
        "नमस्ते दुनिया",
        "שלום עולם",
        "สวัสดี ชาวโลก",
        "日本 テキスト",
    ]
    for number, text in enumerate(texts):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(f"{text}\n".encode(encoding) * 20)
        assert read(file) == [f"{text}\n" * 20], text


@pytest.mark.parametrize("record", [b"abc\0", b"ab\0", "añejo\0".encode(), b"a longer text\0\0"])
def test_zero_bytes_between_texts_do_not_change_the_encoding(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(record * 100)
    assert read(tmp_path / "a.txt") == [record.decode() * 100]


def test_a_column_that_is_missing_is_one_line_however_the_others_are_named(tmp_path: Path) -> None:
    names = ["a\nb", "c" * 10_000, *(f"d{i}" for i in range(100))]
    pq.write_table(pa.table({name: ["x"] for name in names}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(dict.fromkeys(names, "x")))
    for file in ("a.parquet", "a.jsonl"):
        said = refused(read, tmp_path / file)
        assert "has no column 'text'; it has a b, cccc" in said
        assert said.endswith("d17 and 82 more")
        assert len(said) < 500


def test_a_folder_is_not_taken_for_a_pattern_without_files(tmp_path: Path) -> None:
    assert f"{str(tmp_path)!r} is a folder; name its files, such as" in refused(read, tmp_path)


def test_the_home_of_a_user_who_does_not_exist_is_a_file_that_does_not(tmp_path: Path) -> None:
    said = refused(read, Path("~nobody-of-this-name/a.txt"))
    assert "no file matches '~nobody-of-this-name/a.txt'" in said
