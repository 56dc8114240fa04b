"""A hash of source files that only what they compute changes.

Comments, docstrings, line breaks, indentation widths and the places that names are imported from
leave it as it is, and so does a move of a file. It reads tokens by rules of its own, so that all
versions of Python give the same.
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
    """16 hex digits over what these files compute: Python, and templates and prompts as they are.

    Their order, their names and files without any code make no difference.
    """
    found = sorted(digest for file in set(files) if (digest := _digest(file)))
    return hashlib.blake2b(b"".join(found), digest_size=8).hexdigest()


def file_digests(*files: Path) -> dict[str, str]:
    """16 hex digits over what each file computes, by its path in the package; none without code."""
    found = {_name(file): digest.hex() for file in files if (digest := _digest(file))}
    return dict(sorted(found.items()))


def _name(file: Path) -> str:
    inside = file.is_relative_to(PACKAGE)
    return (file.relative_to(PACKAGE) if inside else Path(file.parent.name, file.name)).as_posix()


def files_in(names: Iterable[str], but: Iterable[str] = ()) -> list[Path]:
    """The files of the package that these paths name, those in folders too, sorted.

    Args:
        names: files and folders, relative to the package.
        but: files and folders that are left out.
    """
    found = {file for name in names for file in _files(PACKAGE / name)}
    return sorted(found - {file for name in but for file in _files(PACKAGE / name)})


@cache
def with_siblings(file: Path) -> tuple[Path, ...]:
    """A file and those of its own folder that it imports, however long the way round, sorted."""
    found: set[Path] = set()
    new = [file]
    while new:
        path = new.pop()
        if path not in found:
            found.add(path)
            new += [p for p in _files(file.parent, deep=False) if p.stem in _imported(path)]
    return tuple(sorted(found))


def thing_files(registry: Registry[Any], *names: str) -> tuple[Path, ...]:
    """The files that define things of a registry, other packages' too, each `with_siblings`."""
    return tuple(file for name in names for file in with_siblings(registry.file(name)))


@cache
def _files(path: Path, *, deep: bool = True) -> tuple[Path, ...]:
    inside = [path] if path.is_file() else path.glob("**/*" if deep else "*.py")
    return tuple(p for p in inside if p.is_file() and "__pycache__" not in p.parts)


@cache
def _imported(path: Path) -> frozenset[str]:
    """Each name in the import statements of a file, those of modules part by part."""
    text = path.read_text(encoding="utf-8")
    statements = re.findall(r"^\s*(?:from|import)\b[^(\n]*(?:\([^)]*\))?", text, re.MULTILINE)
    return frozenset(re.findall(r"\w+", " ".join(statements)))


@cache
def _digest(file: Path) -> bytes:
    """Hash of a file's code; empty if it has none."""
    data = file.read_bytes()
    if file.suffix == ".py":
        data = "\0".join(code_tokens(data.decode())).encode()
    return hashlib.blake2b(data, digest_size=8).digest() if data else b""


def code_tokens(text: str) -> list[str]:
    """The tokens of a Python file that decide what it computes.

    Without comments, text that stands alone (docstrings), line breaks in brackets and the comma
    before a bracket that closes, where it says nothing. Of each import from nullsae only the names
    are kept, sorted, at the end: where they lie computes nothing.
    """
    kept: list[str] = []
    imported: set[str] = set()
    widths = [0]
    for width, line in _lines(text):
        if all(token[-1] in "\"'" for token in line):
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
    """Each logical line that holds a token: the width of its indentation, and its tokens."""
    lines: list[tuple[int, list[str]]] = []
    line: list[str] = []
    width = 0
    # Of each open bracket: whether it calls, defines or subscripts, and its commas so far.
    brackets: list[tuple[bool, int]] = []
    for token in _TOKEN.findall("\n" + text.replace("\r\n", "\n") + "\n"):
        first = token[0]
        if first == "\n":
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
                # (x,) is no (x), and y[x,] no y[x]; all other commas before a bracket say nothing.
                alone = joined if token == "]" else token == ")" and not joined
                if line and line[-1] == "," and not (alone and commas == 1):
                    line.pop()
            line.append(token)
    return lines
