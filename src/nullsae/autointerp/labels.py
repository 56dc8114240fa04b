"""Labels of windows in an answer: read by their keys, or by their place in a list that is whole."""

from __future__ import annotations

import re

from nullsae.autointerp.label_lines import BLANK, blocks_of_lines
from nullsae.autointerp.label_words import (
    KEY_FIELD,
    LABEL_FIELD,
    LEAF,
    Block,
    Label,
    read_label,
    read_number,
)
from nullsae.autointerp.loose_json import Branch, Leaf, Node, find_branches
from nullsae.autointerp.reasoning import answer_alone

_SEPARATOR = re.compile(r"[ \t*_]*(?:[:=|]|[-=]>|→|-\s)")
_AFTER_KEY = re.compile(r"\d\W*[:=|>-]\W*\Z")
_NEGATED_FIELD = re.compile(
    r"in_?active|non|not|neg|silent|unmatch|absent|false|no\b", re.IGNORECASE
)
_FINAL_FIELD = re.compile(r"final|answers?\b|corrected|revised", re.IGNORECASE)
_DRAFT_FIELD = re.compile(
    r"draft|initial|first|guess|tentative|prelim|example|before|reason|think|thought|scratch",
    re.IGNORECASE,
)


def labels(content: str, n_windows: int) -> dict[int, Label]:
    """Labels by window number from a reply in words, JSON or anything between.

    The last answer counts, and no reasoning. Answers with keys count one by one, in whatever order:
    a window that is missing, out of range or answered in two ways is left out. Keys from 0 count as
    such if they are exactly 0 to n - 1. A list without keys counts only if it has exactly one label
    per window: nobody knows which one a shorter list has lost. A window's number, from 1, gives
    (0 or 1, place of the label in `content`).
    """
    text = answer_alone(content)
    blocks, rest = _blocks_of_json(text)
    blocks = sorted([*blocks, *blocks_of_lines(rest, n_windows)], key=lambda block: block.place)
    if not blocks:
        return {}
    found = blocks[-1].by_window(n_windows)
    if len(blocks) > 1 and blocks[-2].is_json and not blocks[-1].is_json and found:
        # Prose behind JSON that says some of it again.
        whole = blocks[-2].by_window(n_windows)
        if all(n in whole and whole[n][0] == label for n, (label, _) in found.items()):
            return whole
    return found


def _blocks_of_json(text: str) -> tuple[list[Block], str]:
    """The blocks in objects and lists of JSON, and the text with these blanked."""
    blocks: list[Block] = []
    rest, last_stop = text, -1
    for branch in find_branches(text):
        if branch.kind == "[" and len(branch.items) == 1:
            line = text[text.rfind("\n", 0, branch.start) + 1 : branch.start]
            if _SEPARATOR.match(text, branch.stop) or _AFTER_KEY.search(line):
                continue  # brackets around the number of a window, or around its label
        found = _blocks_of(branch)
        if not found:
            continue
        between = rest[last_stop : branch.start].strip(" \t\r\n,;-*`")
        joined = (
            last_stop >= 0 and not between and len(found) == 1 and _joined(blocks[-1], found[0])
        )
        if not joined:
            blocks += found
        rest = rest[: branch.start] + BLANK * (branch.stop - branch.start) + rest[branch.stop :]
        last_stop = branch.stop
    return blocks, rest


def _joined(before: Block, block: Block) -> bool:
    """Add a block's rows to those before it, if both are parts of one answer."""
    if before.unkeyed is not None or block.unkeyed is not None or before.numbers & block.numbers:
        return False
    before.rows += block.rows
    return True


def _blocks_of(node: Node) -> list[Block]:
    """The blocks within an object or list, in order."""
    if isinstance(node, Leaf):
        return []
    rows = _rows_of_object(node) if node.kind == "{" else _rows_of_list(node)
    if any(label is not None for _, label in rows):
        return [Block(node.start, rows, is_json=True)]
    leaves = [value for value in node.values() if isinstance(value, Leaf)]
    items = [_leaf_label(leaf) for leaf in leaves]
    if node.kind == "[" and leaves and len(leaves) == len(node.items) and all(items):
        return [Block(node.start, unkeyed=[item for item in items if item], is_json=True)]
    inner = [(key, found) for key, value in node.items if (found := _blocks_of(value))]
    lists = [key for key, found in inner if found[-1].unkeyed is not None]
    negated = [key for key, _ in inner if key and _NEGATED_FIELD.match(key.text)]
    if len(lists) > 1 or negated:
        # Such as the active and the silent windows: their lists may be numbers of windows.
        inner = [(key, found) for key, found in inner if key not in (*lists, *negated)]
        if not inner:
            return [Block(node.start, is_json=True)]
    for kind in (_FINAL_FIELD, _DRAFT_FIELD):
        of_kind = [key for key, _ in inner if key and kind.match(key.text)]
        if 0 < len(of_kind) < len(inner):
            inner = [pair for pair in inner if (pair[0] in of_kind) is (kind is _FINAL_FIELD)]
    blocks: list[Block] = []
    for _, found in inner:
        # One object per window.
        if not (node.kind == "[" and blocks and len(found) == 1 and _joined(blocks[-1], found[0])):
            blocks += found
    return blocks


def _rows_of_object(node: Branch) -> list[tuple[int, Label | None]]:
    """Rows of {"1": 0}, {"1": {"active": 0}}, {"window": 1, "active": 0} or two lists of them."""
    rows = [
        (number, _label_of(value))
        for key, value in node.items
        if key is not None and (number := read_number(key.text)) is not None
    ]
    if any(label is not None for _, label in rows):
        return rows
    keys = [v for k, v in node.items if k and KEY_FIELD.fullmatch(k.text.strip())]
    named = _field(node)
    if len(keys) != 1 or named is None:
        return []
    if isinstance(keys[0], Leaf) and (number := read_number(keys[0].text)) is not None:
        return [(number, _label_of(named))]
    windows = keys[0]
    lists = [v for v in (windows, named) if isinstance(v, Branch) and v.kind == "["]
    if isinstance(windows, Branch) and isinstance(named, Branch) and len(lists) == 2:
        numbers = [read_number(v.text) if isinstance(v, Leaf) else None for v in windows.values()]
        said = [_label_of(value) for value in named.values()]
        if len(said) == len(numbers) and None not in numbers:
            return [(n, label) for n, label in zip(numbers, said, strict=True) if n is not None]
    return []


def _rows_of_list(node: Branch) -> list[tuple[int, Label | None]]:
    """Rows of [[1, 0], [2, 1]]."""
    rows: list[tuple[int, Label | None]] = []
    for value in node.values():
        if not isinstance(value, Branch) or value.kind != "[" or len(value.items) != 2:
            return []
        first, second = value.values()
        number = read_number(first.text) if isinstance(first, Leaf) else None
        if number is None or not isinstance(second, Leaf):
            return []
        rows.append((number, _leaf_label(second)))
    return rows


def _field(node: Branch) -> Node | None:
    """The value of the one field that holds a label; None where several do."""
    found = [v for k, v in node.items if k and LABEL_FIELD.fullmatch(k.text.strip())]
    return found[0] if len(found) == 1 else None


def _label_of(node: Node) -> Label | None:
    if isinstance(node, Leaf):
        return _leaf_label(node)
    if node.kind == "[":
        return _label_of(node.items[0][1]) if len(node.items) == 1 else None
    inner = _field(node)
    return None if inner is None else _label_of(inner)


def _leaf_label(leaf: Leaf) -> Label | None:
    match = LEAF.match(leaf.text)
    return None if match is None else read_label(match, leaf.place)
