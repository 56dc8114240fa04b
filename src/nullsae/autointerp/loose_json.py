"""JSON as language models write it: truncated, single-quoted, or surrounded by other text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

# Deeper nesting is treated as the end.
MAX_DEPTH = 40
_CLOSING = {"{": "}", "[": "]"}
_STRING = re.compile(r""""(?:[^"\\]|\\.)*(?:"|\Z)|'(?:[^'\\\n]|\\.)*'""", re.DOTALL)
_BARE = re.compile(r"""[^\s,:{}\[\]"']+|['"]""")
# Comments are not values.
_BETWEEN = re.compile(r"(?:[\s,]|//[^\n]*|#\s[^\n]*|/\*.*?\*/)*", re.DOTALL)


@dataclass(frozen=True)
class Leaf:
    """A string, a number or a word."""

    text: str
    """Without quotation marks."""
    place: int
    """Where `text` starts."""


@dataclass
class Branch:
    """An object or a list."""

    kind: str
    """`{` or `[`."""
    start: int
    stop: int = 0
    closed: bool = False
    items: list[tuple[Leaf | None, Node]] = field(default_factory=list)
    """Each with its key; None in a list, or if there was no key."""

    def values(self) -> list[Node]:
        return [value for _, value in self.items]


Node: TypeAlias = Leaf | Branch


def find_branches(text: str) -> list[Branch]:
    """Return the outermost objects and lists of a text, in order; never raises."""
    found, at = [], 0
    while (opening := re.compile(r"[{\[]").search(text, at)) is not None:
        branch = _branch(text, opening.start(), 0)
        found.append(branch)
        at = max(branch.stop, opening.end())
    return found


def branches_within(leaf: Leaf) -> list[Branch]:
    """Return the outermost JSON objects and lists in a string, such as a tool's arguments."""
    if leaf.text.lstrip()[:1] not in ("{", "["):
        return []
    # Quotation marks are escaped there; positions do not change.
    return find_branches(" " * leaf.place + leaf.text.replace('\\"', ' "'))


def _branch(text: str, start: int, depth: int) -> Branch:
    """Parse the object or list that starts at a bracket."""
    branch = Branch(text[start], start)
    closing, at, key = _CLOSING[text[start]], start + 1, None
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if at >= len(text) or (depth >= MAX_DEPTH and text[at] in "{["):
            branch.stop = len(text) if at >= len(text) else at
            return branch
        if text[at] in "}]":
            # A bracket of the other kind closes the surrounding one.
            branch.closed = text[at] == closing
            branch.stop = at + 1 if branch.closed else at
            return branch
        if text[at] == ":":
            last = branch.items.pop() if branch.items else (None, None)
            key = last[1] if isinstance(last[1], Leaf) else None
            at += 1
            continue
        value = _branch(text, at, depth + 1) if text[at] in "{[" else _leaf(text, at)
        at = value.stop if isinstance(value, Branch) else _end(text, at)
        branch.items.append((key, value))
        key = None


def _leaf(text: str, at: int) -> Leaf:
    quoted = _STRING.match(text, at)
    if quoted is None:
        bare = _BARE.match(text, at)
        return Leaf(bare[0] if bare else "", at)
    whole = quoted[0]
    ends = len(whole) > 1 and whole[-1] == whole[0]
    return Leaf(whole[1:-1] if ends else whole[1:], at + 1)


def _end(text: str, at: int) -> int:
    found = _STRING.match(text, at) or _BARE.match(text, at)
    return found.end() if found else at + 1
