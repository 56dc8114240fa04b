"""Labels in structures with fields: objects and lists of JSON, and tables, read as objects."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nullsae.autointerp.label_words import (
    KEY,
    REST,
    WORDS,
    Block,
    Label,
    Row,
    first_label,
    read_number,
    without,
)
from nullsae.autointerp.loose_json import Branch, Leaf, Node, branches_within, find_branches

_KEY_FIELD = re.compile(rf"(?i){KEY}(?: ?(?:id|number|index|no))?s?|index|#|n")
_LABEL_FIELD = re.compile(
    r"(?i)(?:is ?)?(?:active|answer|label|value|pred(?:iction)?|result|verdict|judge?ment|fit|"
    r"match|decision|status|activat(?:es|ed|ion)|response|output|present|"
    r"(?:contains|matches|fits)(?: \w+)*)(?:e?s)?"
)
# A list below it may list windows instead of labels; [0, 1] would be ambiguous.
_OF_WINDOWS = re.compile(r"(?i)(?:is ?)?(?:activ|match|fit|contain|present)")
# Fields that are not the answer, or are its opposite.
_UNREAD = re.compile(
    r"(?i)in ?active|non|not|neg|silent|unmatch|absent|false|no\b|draft|initial|first|guess|prelim|"
    r"tentative|example|before|reason|think|thought|scratch|confiden|certain|probab"
)
_FINAL = re.compile(r"(?i)final|answers?\b|corrected|revised")
_REST = re.compile(r"(?i)(?:all )?(?:the )?(?:others?|rest|remaining)")
# Before a list of labels, on its line, and after brackets that contain a key.
_BEFORE_LIST = re.compile(r"(?i)(?:[^\d\n|]*(?:[:=]|\b(?:is|are)\b))?[^\w\n|]*")
_THEN_LABEL = re.compile(rf"(?i)[^\w\n]*{WORDS}\b")
_RULE = re.compile(r"\s*:?-{2,}:?\s*")


def blocks_of_json(text: str) -> tuple[list[Block], str]:
    """Return the blocks in JSON, and the text without them."""
    blocks: list[Block] = []
    rest, last_stop = text, -1
    for branch in find_branches(text):
        if branch.kind == "[" and not _is_list(branch, text):
            continue
        block = Block(branch.start, rows_of(branch), is_json=True)
        if not block.has_label and not any(key for key, _ in branch.items):
            continue
        between = rest[last_stop : branch.start].strip(" \t\r\n,;-")
        if any(isinstance(v, Leaf) and v.text in ("...", "\u2026") for v in branch.values()):
            pass  # {"1": 0, "2": 1, ...}
        elif blocks and not between and blocks[-1].may_go_on(block):
            blocks[-1].rows += block.rows  # one object per window
        elif block.has_label or any(isinstance(v, Branch) and v.items for v in branch.values()):
            blocks.append(block)
        rest = without(rest, branch.start, branch.stop)
        last_stop = branch.stop
    return blocks, rest


def _is_list(branch: Branch, text: str) -> bool:
    """Return whether brackets are an answer, not a number, a label or a text in a sentence."""
    if not _is_flat(branch):
        return True
    start = text.rfind("\n", 0, branch.start) + 1
    is_key = _THEN_LABEL.match(text, branch.stop) is not None
    return _BEFORE_LIST.fullmatch(text, start, branch.start) is not None and not is_key


def block_of_table(lines: list[tuple[int, str]]) -> list[Block]:
    """Return the block in a Markdown table, with or without header, reading rows as objects."""
    table = [_cells(at, line) for at, line in lines if "|" in line]
    rule = next((i for i, row in enumerate(table) if all(_RULE.fullmatch(c.text) for c in row)), 0)
    names = [cell.text.strip(" ?") for cell in table[rule - 1]] if rule else [""]
    if not any(_KEY_FIELD.fullmatch(name) for name in names) and read_number(names[0]) is None:
        names[0] = "window"
    is_named = any(_LABEL_FIELD.fullmatch(name) for name in names)
    rows: list[Row] = []
    for cells in table[rule + 1 if rule else 0 :]:
        row = Branch("{", 0)
        for name, cell in zip(names + [""] * len(cells), cells, strict=False):
            if is_named or _KEY_FIELD.fullmatch(name) or read_number(name) is not None:
                row.items.append((Leaf(name, 0), cell))
            elif _label(cell):  # a column of labels under any name
                row.items.append((Leaf("label", 0), cell))
        rows += [one for one in rows_of(row) if one[0] is not None]
    block = Block(lines[0][0], rows)
    return [block] if block.has_label else []


def _cells(at: int, line: str) -> list[Leaf]:
    start = len(line) - len(line.lstrip().removeprefix("|"))
    stop = len(line.rstrip().removesuffix("|"))
    return [Leaf(m[0], at + m.start()) for m in re.compile(r"[^|]+").finditer(line, start, stop)]


def rows_of(node: Node) -> list[Row]:
    """Return what a tree says about windows: labels, with a window number or None."""
    if isinstance(node, Leaf):
        inner = branches_within(node)
        return [row for one in inner for row in rows_of(one)] if inner else [(None, _label(node))]
    rows: list[Row] = []
    for key, value in _fields(node):
        name = key.text.strip() if key else ""
        found = rows_of(value)
        number = REST if _REST.fullmatch(name) else read_number(name)
        is_list = isinstance(value, Branch) and value.kind == "["
        if key:
            is_label = _LABEL_FIELD.fullmatch(name) and not (is_list and _OF_WINDOWS.match(name))
        else:
            is_label = len(node.items) == 1 or (node.kind == "[" and isinstance(value, Leaf))
        if number is not None:
            found = [(number, _only(label for n, label in found if n in (None, number)))]
        elif _UNREAD.match(name):
            continue
        elif not is_label:
            found = [row for row in found if row[0] is not None]
        if _FINAL.match(name):
            rows = [row for row in rows if row[0] is None or row[0] not in dict(found)]
        rows += found
    numbered = [row for row in rows if row[0] is not None]
    own = _own_number(node)
    if own is None or numbered or not rows:
        return numbered or rows
    return [(own, _only(label for _, label in rows))]


def _fields(node: Branch) -> Iterable[tuple[Leaf | None, Node]]:
    """Return the fields of a node, by window for a list of pairs or two parallel lists."""
    lists = [(k, v) for k, v in node.items if isinstance(v, Branch) and v.kind == "["]
    if node.kind == "[":
        pairs = [v.values() for _, v in lists if len(v.items) == 2]
        both = [(k, v) for k, v in pairs if isinstance(k, Leaf)]
        return both if both and len(both) == len(node.items) else node.items
    keys, said = (
        [v.values() for k, v in lists if k and field.fullmatch(k.text.strip()) and _is_flat(v)]
        for field in (_KEY_FIELD, _LABEL_FIELD)
    )
    if len(keys) == len(said) == 1 and len(keys[0]) == len(said[0]):
        return [(k, v) for k, v in zip(keys[0], said[0], strict=True) if isinstance(k, Leaf)]
    return [] if keys else node.items


def _is_flat(branch: Branch) -> bool:
    return all(isinstance(value, Leaf) for value in branch.values())


def _own_number(node: Branch) -> int | None:
    """Return the window number among an object's own fields."""
    named = [
        (name.startswith("window"), number)
        for key, value in node.items
        if key and _KEY_FIELD.fullmatch(name := key.text.strip().lower())
        if isinstance(value, Leaf) and (number := read_number(value.text)) is not None
    ]
    # If there are several, such as a count of rows, take that of the windows.
    found = [number for is_window, number in named if is_window or len(named) == 1]
    return found[0] if len(found) == 1 else None


def _only(labels: Iterable[Label | None]) -> Label | None:
    """Return the first label, if it is the only one."""
    first, *others = [*labels] or [None]
    return None if any(others) else first


def _label(leaf: Leaf) -> Label | None:
    return first_label(re.sub(r"\.0+\Z", "", leaf.text), leaf.place)
