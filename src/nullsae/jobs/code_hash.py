"""A hash of source files that changes only with what they compute.

It ignores comments, docstrings, line breaks, indentation widths, file names, and the modules that
names are imported from. It has its own tokenizer, so that all versions of Python give the same
hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from keyword import iskeyword
from pathlib import Path
from typing import Any

from nullsae.core.registry import Registry

PACKAGE = Path(__file__).parents[1]
_QUOTED = (
    r'"""(?:[^\\]|\\.)*?"""',
    r"'''(?:[^\\]|\\.)*?'''",
    r'"(?:[^\\\n"]|\\.)*"',
    r"'(?:[^\\\n']|\\.)*'",
)
_TOKEN = re.compile(
    rf"[A-Za-z]{{0,2}}(?:{'|'.join(_QUOTED)})|#[^\n]*|\\\n|\n[ \t]*|\w+|[^\w\s]", re.DOTALL
)


@cache
def code_hash(*files: Path) -> str:
    """Return 16 hex digits over these files: the code of Python, other files as they are.

    Order, names and files without code make no difference.
    """
    found = sorted(digest for file in set(files) if (digest := _digest(file)))
    return hashlib.blake2b(b"".join(found), digest_size=8).hexdigest()


def file_digests(*files: Path) -> dict[str, str]:
    """Return 16 hex digits for each file with code, by its path in the package."""
    found = {_name(file): digest.hex() for file in files if (digest := _digest(file))}
    return dict(sorted(found.items()))


def _name(file: Path) -> str:
    inside = file.is_relative_to(PACKAGE)
    return (file.relative_to(PACKAGE) if inside else Path(file.parent.name, file.name)).as_posix()


def files_in(names: Iterable[str], but: Iterable[str] = ()) -> list[Path]:
    """Return the package's files at these paths, including those in folders, sorted.

    Args:
        names: files and folders, relative to the package.
        but: files and folders to leave out.
    """
    found = {file for name in names for file in _files(PACKAGE / name)}
    return sorted(found - {file for name in but for file in _files(PACKAGE / name)})


@cache
def with_siblings(file: Path) -> tuple[Path, ...]:
    """Return a file and the files of its folder that it imports, directly or not, sorted."""
    found: set[Path] = set()
    new = [file]
    while new:
        path = new.pop()
        if path not in found:
            found.add(path)
            new += [p for p in _files(file.parent, deep=False) if p.stem in _imported(path)]
    return tuple(sorted(found))


def thing_files(registry: Registry[Any], *names: str) -> tuple[Path, ...]:
    """Return the files that define things of a registry, each `with_siblings`.

    They may be in other packages.
    """
    return tuple(file for name in names for file in with_siblings(registry.file(name)))


@cache
def _files(path: Path, *, deep: bool = True) -> tuple[Path, ...]:
    inside = [path] if path.is_file() else path.glob("**/*" if deep else "*.py")
    return tuple(p for p in inside if p.is_file() and "__pycache__" not in p.parts)


@cache
def _imported(path: Path) -> frozenset[str]:
    """Return each name in the import statements of a file; dotted names are split."""
    text = path.read_text(encoding="utf-8")
    statements = re.findall(r"^\s*(?:from|import)\b[^(\n]*(?:\([^)]*\))?", text, re.MULTILINE)
    return frozenset(re.findall(r"\w+", " ".join(statements)))


@cache
def _digest(file: Path) -> bytes:
    """Return the hash of a file's code; empty if it has none."""
    data = file.read_bytes()
    if file.suffix == ".py":
        data = "\0".join(code_tokens(data.decode())).encode()
    return hashlib.blake2b(data, digest_size=8).digest() if data else b""


def code_tokens(text: str) -> list[str]:
    """Return the tokens of a Python file that decide what it computes.

    They exclude comments, bare strings (docstrings), line breaks in brackets, and trailing commas
    without meaning. Of imports from nullsae only the names are kept, sorted, at the end, since
    their modules do not matter.
    """
    kept: list[str] = []
    imported: set[str] = set()
    widths = [0]
    for width, line in _lines(text):
        if line[0][-1] in "\"'" and all(token[-1] in "\"'" for token in line):
            continue
        if line[:2] == ["from", "nullsae"]:
            names = (token for token in line[line.index("import") + 1 :] if token not in "()")
            imported |= set(" ".join(names).rstrip(" ,").split(" , "))
            continue
        if width > widths[-1]:
            widths.append(width)
            kept.append("\t")
        while width < widths[-1]:
            widths.pop()
            kept.append("\b")
        kept += [*line, "\n"]
    return kept + sorted(imported)


def _lines(text: str) -> list[tuple[int, list[str]]]:
    """Return the indentation width and the tokens of each logical line with tokens."""
    lines: list[tuple[int, list[str]]] = []
    line: list[str] = []
    width = 0
    # For each open bracket: whether it calls, defines or subscripts, and its commas so far.
    brackets: list[tuple[bool, int]] = []
    for token in _TOKEN.findall("\n" + text.replace("\r\n", "\n") + "\n"):
        first = token[0]
        if first not in "\n#\\([{,)]}":
            line.append(token)
        elif first == "\n":
            if not brackets:
                if line:
                    lines.append((width, line))
                    line = []
                width = len(token) - 1
        elif first not in "#\\":
            if token in "([{":
                before = line[-1] if line else ""
                joined = (before[-1:].isalnum() or before[-1:] in "_)]") and not iskeyword(before)
                brackets.append((joined, 0))
            elif token == "," and brackets:
                brackets[-1] = (brackets[-1][0], brackets[-1][1] + 1)
            elif token in ")]}" and brackets:
                joined, commas = brackets.pop()
                # (x,) is not (x), nor y[x,] y[x]; other commas before a bracket have no meaning.
                alone = joined if token == "]" else token == ")" and not joined
                if line and line[-1] == "," and not (alone and commas == 1):
                    line.pop()
            line.append(token)
    return lines
