"""Labels of windows in an answer: read by their keys, or by their place in a list that is whole."""

from __future__ import annotations

import re

from nullsae.autointerp.label_forms import BLANK, blocks_of_tags, plain, without_legend
from nullsae.autointerp.label_lines import blocks_of_lines
from nullsae.autointerp.label_words import (
    CORRECTION,
    KEY_FIELD,
    KEY_WORDS,
    LABEL_FIELD,
    LEAF,
    Block,
    Label,
    read_label,
    read_number,
)
from nullsae.autointerp.loose_json import Branch, Leaf, Node, branches_within, find_branches
from nullsae.autointerp.reasoning import answer_alone

_SENTENCE = re.compile(r"[^.!?\n]+")
_CORRECTS = re.compile(rf"\b{CORRECTION}\b", re.IGNORECASE)
_ANSWERS = re.compile(r"\b(?:final|answers?|results?|conclusion)\b", re.IGNORECASE)
_WINDOW = re.compile(rf"\b{KEY_WORDS}[\s#*_]+(?P<number>\d{{1,4}})\b", re.IGNORECASE)
# Lists of windows, not of labels; which one it is cannot be told from [0, 1].
_WINDOWS_FIELD = re.compile(
    r".*(?:windows|ind(?:ex|ices)|ids|numbers|positions|match(?:es|ing)|positives?|hits|which)\Z",
    re.IGNORECASE,
)
# Before an object that shows a form.
_SHOWS = re.compile(
    r"\b(?:format|example|e\.g\.|such as|template|schema)\b[^\n{}\[\]]{0,30}\Z", re.IGNORECASE
)
_SEPARATOR = re.compile(r"[ \t*_]*(?:[:=|]|[-=]>|→|-\s)")
_AFTER_KEY = re.compile(r"\d\W*[:=|>-]\W*\Z")
_NEGATED_FIELD = re.compile(
    r"in_?active|non|not|neg|silent|unmatch|absent|false|no\b", re.IGNORECASE
)
_FINAL_FIELD = re.compile(r"final|answers?\b|corrected|revised", re.IGNORECASE)
_REST_FIELD = re.compile(r"(?:all[_ ])?(?:the[_ ])?(?:others?|rest|remaining)", re.IGNORECASE)
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
    text = plain(answer_alone(content))
    blocks = _all_blocks(without_legend(text), n_windows)
    if not blocks and n_windows == 2:
        # What looks like a legend is the answer, counted from 0.
        blocks = _all_blocks(text, n_windows)
    if not blocks:
        label = _only_label(text) if n_windows == 1 else None
        return {} if label is None else {1: label}
    found = _last_answer(blocks, text, n_windows)
    last = text.find("\n", max((place for _, place in found.values()), default=0))
    for sentence in _SENTENCE.finditer(text, last if last >= 0 else len(text)):
        # "Correction: window 2 should be 0": which label counts is not read from words.
        if _CORRECTS.search(sentence[0]):
            for window in _WINDOW.finditer(sentence[0]):
                found.pop(int(window["number"]), None)
    return found


def _only_label(text: str) -> Label | None:
    """The label of the only window: of an object with one, or at the start of a sentence."""
    if branches := find_branches(text):
        named = _field(branches[-1])
        return None if named is None else _label_of(named)
    match = LEAF.match(text)
    return None if match is None or _ANSWERS.search(text) else read_label(match)


def _all_blocks(text: str, n_windows: int) -> list[Block]:
    """All blocks of an answer, in order."""
    blocks, shown, rest = _blocks_of_json(text)
    tags, rest = blocks_of_tags(rest)
    blocks += tags + blocks_of_lines(rest, n_windows)
    return sorted(blocks or shown, key=lambda block: block.place)


def _last_answer(blocks: list[Block], text: str, n_windows: int) -> dict[int, Label]:
    """What the last block says, or the JSON before it, if it only speaks of that."""
    found = blocks[-1].by_window(n_windows)
    earlier = [place for place, block in enumerate(blocks) if block.is_json]
    if not earlier or blocks[-1].is_json or len(found) == n_windows:
        return found
    whole = blocks[earlier[-1]].by_window(n_windows)
    remarks = [block.by_window(n_windows) for block in blocks[earlier[-1] + 1 :]]
    if not all(number in whole for remark in remarks for number in remark):
        return found
    kept = dict(whole)
    for remark in remarks:
        for number, label in remark.items():
            if whole[number][0] == label[0]:
                continue
            before = text[whole[number][1] : label[1]]
            if _CORRECTS.search(before):
                kept[number] = label
            elif _ANSWERS.search(before):
                return found
            else:
                kept.pop(number, None)
    return kept


def _blocks_of_json(text: str) -> tuple[list[Block], list[Block], str]:
    """The blocks in JSON, those that only show a form, and the text with both blanked."""
    blocks: list[Block] = []
    shown: list[Block] = []
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
        beside = bool(blocks) and not between and len(found) == 1
        if _is_form(branch) or _SHOWS.search(text, max(0, branch.start - 60), branch.start):
            shown += [] if _is_form(branch) else found
        elif not (beside and _joined(blocks[-1], found[0])):
            blocks += found
        rest = rest[: branch.start] + BLANK * (branch.stop - branch.start) + rest[branch.stop :]
        last_stop = branch.stop
    return blocks, shown, rest


def _is_form(branch: Branch) -> bool:
    """Whether an object says what an answer looks like, as {"1": 0, "2": 1, ...} does."""
    return any(isinstance(v, Leaf) and v.text in ("...", "\u2026") for v in branch.values())


def _joined(before: Block, block: Block, *, is_list: bool = False) -> bool:
    """Add a block's rows to those before it, if both are parts of one answer, as in a list."""
    if before.unkeyed is not None or block.unkeyed is not None:
        return False
    if before.numbers & block.numbers and not is_list:
        return False
    before.rows += block.rows
    return True


def _blocks_of(node: Node) -> list[Block]:
    """The blocks within an object or list, in order."""
    if isinstance(node, Leaf):
        return [block for branch in branches_within(node) for block in _blocks_of(branch)]
    rows = _rows_of_object(node) if node.kind == "{" else _rows_of_list(node)
    if any(label is not None for _, label in rows):
        return [_block_of_rows(node, rows)]
    leaves = [value for value in node.values() if isinstance(value, Leaf)]
    items = [_leaf_label(leaf) for leaf in leaves]
    if node.kind == "[" and leaves and len(leaves) == len(node.items) and all(items):
        return [Block(node.start, unkeyed=[item for item in items if item], is_json=True)]
    inner = [(key, found) for key, value in node.items if (found := _blocks_of(value))]
    for key, found in inner:
        if key and _WINDOWS_FIELD.match(key.text.strip()) and found[-1].unkeyed is not None:
            said = [label for label, _ in found[-1].unkeyed]
            if len(set(said)) == len(said):
                return [Block(node.start, is_json=True)]
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
        # One object per window; a window that comes again is answered in two ways.
        is_one = node.kind == "[" and blocks and len(found) == 1
        if not (is_one and _joined(blocks[-1], found[0], is_list=True)):
            blocks += found
    return blocks


def _block_of_rows(node: Branch, rows: list[tuple[int, Label | None]]) -> Block:
    """The block of an object or list with rows, and with what else it says of windows."""
    rest = None
    for key, value in node.items:
        if key and _REST_FIELD.fullmatch(key.text):
            rest = _label_of(value)
        elif key and _FINAL_FIELD.match(key.text):
            later = [row for block in _blocks_of(value) for row in block.rows]
            numbers = {number for number, _ in later}
            rows = [row for row in rows if row[0] not in numbers] + later
    return Block(node.start, rows, rest=rest, is_json=True)


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
    if len(keys) > 1:  # such as the text of a window beside its number
        keys = [v for v in keys if isinstance(v, Leaf) and read_number(v.text) is not None]
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
        rest = node.values()[1:]  # a label, and why
        words = all(isinstance(v, Leaf) and LEAF.match(v.text) is None for v in rest)
        return _label_of(node.items[0][1]) if node.items and words else None
    inner = _field(node)
    return None if inner is None else _label_of(inner)


def _leaf_label(leaf: Leaf) -> Label | None:
    match = LEAF.match(re.sub(r"\.0+\Z", "", leaf.text))
    return None if match is None else read_label(match, leaf.place)
