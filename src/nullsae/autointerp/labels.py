"""Labels of windows in an answer: read by their keys, or by their place in a list that is whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from nullsae.autointerp.loose_json import Branch, Leaf, Node, find_branches
from nullsae.autointerp.reasoning import answer_alone

POSITIVE = ("1", "yes", "true")
NEGATIVE = ("0", "no", "false")

# In the place of JSON that has been read.
BLANK = "\0"
# A label, 0 or 1, and its place in the text.
Label: TypeAlias = tuple[int, int]

_LABEL = rf"(?P<label>{'|'.join(POSITIVE + NEGATIVE)})"
_MARKS = r"[\s*_\"'`(\[]*"
# What may follow a label: else it is the beginning of a sentence, as in "1: No cups are named".
_AFTER = r"""(?=[*_"'`)\]]*\s*(?:$|[,;:|)\]}"'*_`(]|\.(?!\d)|\s[-\u2013\u2014]|[\u2013\u2014→]|<br|
    (?:because|since|as|due|but)\b|(?:and\s+)?(?:(?:window|item|w)\s*)?\#?\d{1,4}\W{0,3}[:=|>→]))
    (?![\w%])"""
_KEY_WORDS = r"(?:windows?|item|row|text|example|passage|sentence|excerpt|number|no|nr|id|w)"
_PAIR = re.compile(
    rf"""(?<![\w./])(?<!\d[:-])(?:{_KEY_WORDS}(?:\b|_|(?=\d))[\s_\#.:]{{0,3}})?\#?(?P<number>\d{{1,4}})
    [\])"'*_`\\]*\s*(?:[:\uff1a=|]|[-=]>|→|⇒|[\u2013\u2014]|[-.)](?=[\s*_])|\bis\b){_MARKS}
    (?:(?:is\ )?(?:active|answer|label)\W{{1,4}})?{_LABEL}{_AFTER}
    |\(\s*(?P<first>\d{{1,4}})\s*,\s*["']?(?P<second>{"|".join(POSITIVE + NEGATIVE)})["']?\s*\)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_ANSWER_WORD = r"(?:answers?|labels?|results?|output|response|predictions?|judge?ments?)"
# A heading with the number of a window, and its label below.
_HEADED = re.compile(
    rf"""^(?P<head>[^\w\n]*{_KEY_WORDS}\s*\#?\d{{1,4}})(?P<gap>[^\w\n]*\n[^\w]*
    (?:(?:(?!.*{_KEY_WORDS}\s*\#?\d).*\n){{0,3}}[^\w\n]*(?:{_ANSWER_WORD}|active)[^\w\n]{{1,6}})?)
    (?={_LABEL}[^\w\n]*(?:$|\())""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_NUMBER = re.compile(
    rf"\W*(?:{_KEY_WORDS}?[\s_#.:-]{{0,3}})??\#?(\d{{1,4}})[\s.:)*_\]`\"']*", re.IGNORECASE
)
_ROW = re.compile(
    rf"\W*?(?:{_KEY_WORDS}[\s_#]{{0,3}})?(?P<number>\d{{1,4}})(?:[\"'`]?\s*[,;]\s*[\"'`]?|\s+)"
    rf"{_LABEL}[\s,;*_.\"'`]*",
    re.IGNORECASE,
)
_LIST = re.compile(
    rf"[^\w\n]*(?:(?:(?:so|thus|the|my|final|correct|here|is|are)\s+){{0,4}}{_ANSWER_WORD}"
    rf"(?:\s+(?:is|are|in order|for|the|windows))*[^\w\n]*)?(?P<labels>{_LABEL}"
    rf"(?:(?:[\s,;|*_\"'`]+|\s+and\s+)(?:{'|'.join(POSITIVE + NEGATIVE)}))*)[^\w\n]*",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[ \t*_]*(?:[:=|]|[-=]>|→|-\s)")
_AFTER_KEY = re.compile(r"\d\W*[:=|>-]\W*\Z")
_RULE = re.compile(r"\s*:?-{2,}:?\s*")
_ITEM = re.compile(r"\w+")
_LEAF = re.compile(rf"[\s*_\"'`(\[]*{_LABEL}{_AFTER}", re.VERBOSE | re.IGNORECASE | re.MULTILINE)
_KEY_FIELD = re.compile(rf"{_KEY_WORDS}(?:_?(?:id|number|index|no))?s?|index|#|n", re.IGNORECASE)
_LABEL_FIELD = re.compile(
    r"(?:is_?)?(?:active|answer|label|value|pred(?:iction)?|result|verdict|judge?ment|decision|"
    r"fit|match|activat(?:es|ed|ion)|response|output)(?:e?s)?",
    re.IGNORECASE,
)
_NEGATED_FIELD = re.compile(
    r"in_?active|non|not|neg|silent|unmatch|absent|false|no\b", re.IGNORECASE
)
# Starts the answer after a draft, at the beginning of a sentence.
_ANSWER_STARTS = re.compile(
    r"(?:\A|[\n.!?])\W*(?:(?:so|thus|therefore|my|the|in|here|is|are|hence)\W+)*"
    r"(?:final|answers?|results?|conclusion|corrected|correction|output|actually|wait)\b"
    r"(?!\s*(?:for|to|of)\b)",
    re.IGNORECASE,
)


@dataclass
class Block:
    """What an answer says in one go: one object, table or list."""

    place: int
    rows: list[tuple[int, Label | None]] = field(default_factory=list)
    """Number of a window, as it is written, and its label; None for what is no label."""
    unkeyed: list[Label] | None = None
    """A list of labels without numbers, in order."""
    is_json: bool = False

    @property
    def numbers(self) -> set[int]:
        return {number for number, _ in self.rows}

    def by_window(self, n_windows: int) -> dict[int, Label]:
        """Labels by window number, counted from 1."""
        if self.unkeyed is not None:
            return dict(enumerate(self.unkeyed, 1)) if len(self.unkeyed) == n_windows else {}
        first = 1
        if 0 in self.numbers:
            # Counted from 0, if that is sure: else each label might be the next window's.
            first = 0
            if self.numbers != set(range(n_windows)):
                return {}
        elif 1 not in self.numbers and max(self.numbers) > n_windows:
            return {}
        found: dict[int, Label] = {}
        contradicted = set()
        for number, label in self.rows:
            window = number - first + 1
            if label is None or (window in found and found[window][0] != label[0]):
                contradicted.add(window)
            else:
                found[window] = label
        return {n: found[n] for n in sorted(found) if 1 <= n <= n_windows and n not in contradicted}


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
    blocks = sorted([*blocks, *_blocks_of_lines(rest, n_windows)], key=lambda block: block.place)
    if not blocks:
        return {}
    found = blocks[-1].by_window(n_windows)
    if len(blocks) > 1 and blocks[-2].is_json and not blocks[-1].is_json and found:
        # Prose behind JSON that says some of it again.
        whole = blocks[-2].by_window(n_windows)
        if all(n in whole and whole[n][0] == label for n, (label, _) in found.items()):
            return whole
    return found


# JSON ----------------------------------------------------------------------------------------


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
    inner = [(key, _blocks_of(value)) for key, value in node.items]
    lists = [key for key, found in inner if found and found[-1].unkeyed is not None]
    if len(lists) > 1 or any(key and _NEGATED_FIELD.match(key.text) for key in lists):
        return []  # such as the active and the silent windows
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
        if key is not None and (number := _number(key.text)) is not None
    ]
    if any(label is not None for _, label in rows):
        return rows
    keys = [v for k, v in node.items if k and _KEY_FIELD.fullmatch(k.text.strip())]
    named = _field(node)
    if len(keys) != 1 or named is None:
        return []
    if isinstance(keys[0], Leaf) and (number := _number(keys[0].text)) is not None:
        return [(number, _label_of(named))]
    if isinstance(keys[0], Branch) and isinstance(named, Branch):
        numbers = [_number(v.text) if isinstance(v, Leaf) else None for v in keys[0].values()]
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
        number = _number(first.text) if isinstance(first, Leaf) else None
        if number is None or not isinstance(second, Leaf):
            return []
        rows.append((number, _leaf_label(second)))
    return rows


def _field(node: Branch) -> Node | None:
    """The value of the one field that holds a label; None where several do."""
    found = [v for k, v in node.items if k and _LABEL_FIELD.fullmatch(k.text.strip())]
    return found[0] if len(found) == 1 else None


def _label_of(node: Node) -> Label | None:
    if isinstance(node, Leaf):
        return _leaf_label(node)
    if node.kind == "[":
        return _label_of(node.items[0][1]) if len(node.items) == 1 else None
    inner = _field(node)
    return None if inner is None else _label_of(inner)


def _leaf_label(leaf: Leaf) -> Label | None:
    match = _LEAF.match(leaf.text)
    return None if match is None else _label(match, leaf.place)


def _label(match: re.Match[str], offset: int = 0, group: str = "label") -> Label:
    return int(match[group].lower() in POSITIVE), offset + match.start(group)


def _number(text: str) -> int | None:
    match = _NUMBER.fullmatch(text)
    return None if match is None else int(match[1])


# Lines ---------------------------------------------------------------------------------------

Lines: TypeAlias = list[tuple[int, str]]


def _blocks_of_lines(text: str, n_windows: int) -> list[Block]:
    """The blocks in tables, rows of two, lists and sentences; `text` has JSON blanked."""
    text = _HEADED.sub(lambda m: m["head"] + ":".ljust(len(m["gap"])), text)
    runs: list[tuple[str, Lines]] = []
    for match in re.finditer(r"[^\n]+", text):
        kind = _kind(match[0])
        if runs and kind in ("blank", runs[-1][0]):
            runs[-1][1].append((match.start(), match[0]))
        elif kind != "blank":
            runs.append((kind, [(match.start(), match[0])]))
    blocks: list[Block] = []
    for kind, lines in runs:
        if kind == "table":
            blocks += _block_of_table(lines)
        elif kind == "sentences":
            blocks += _blocks_of_pairs(lines)
        elif kind == "rows" and not (len(lines) == 1 and n_windows == 2 and _is_list(lines[0][1])):
            found = ((at, _ROW.fullmatch(line)) for at, line in lines)
            rows = [(int(match["number"]), _label(match, at)) for at, match in found if match]
            blocks.append(Block(lines[0][0], [*rows]))
        else:
            blocks.append(Block(lines[0][0], unkeyed=_items(lines)))
    # One label behind an answer is a remark.
    return [b for b in blocks if b.unkeyed is None or len(b.unkeyed) > 1 or n_windows == 1]


def _kind(line: str) -> str:
    bare = line.replace(BLANK, " ").strip()
    if not any(c.isalnum() for c in bare.removeprefix("```json")) and not bare.startswith("|"):
        return "blank"
    if bare.startswith("|"):
        return "table"
    if not any(character.isalnum() for character in _PAIR.sub(" ", bare)):
        return "sentences"
    if bare.count("|") > 1:
        return "sentences" if len(_PAIR.findall(bare)) > 1 else "table"
    if _ROW.fullmatch(line):
        return "rows"
    return "list" if _is_list(line) else "sentences"


def _is_list(line: str) -> bool:
    return _LIST.fullmatch(line) is not None


def _items(lines: Lines) -> list[Label]:
    found = ((at, _LIST.fullmatch(line)) for at, line in lines)
    return [
        (int(item[0].lower() in POSITIVE), at + match.start("labels") + item.start())
        for at, match in found
        if match
        for item in _ITEM.finditer(match["labels"])
        if item[0].lower() != "and"
    ]


def _block_of_table(lines: Lines) -> list[Block]:
    """The block in a table of Markdown, with a header or without."""
    table = [_cells(at, line) for at, line in lines if "|" in line]
    rules = [i for i, row in enumerate(table) if all(_RULE.fullmatch(text) for text, _ in row)]
    header: list[str] = []
    if rules and rules[0]:
        header = [text.strip(" *_`?") for text, _ in table[rules[0] - 1]]
        table = table[rules[0] + 1 :]
    numbers = [_number(text) for text in header]
    rows: list[tuple[int, Label | None]] = []
    if len(numbers) > 1 and None not in numbers[1:]:  # one column per window
        said = [row for row in table if len(row) == len(header) and all(map(_cell, row[1:]))]
        for n, cell in zip(numbers, said[0] if len(said) == 1 else [], strict=False):
            rows += [(n, _cell(cell))] if n is not None else []
        return [Block(lines[0][0], rows)] if rows else []
    keys = [i for i, name in enumerate(header) if _KEY_FIELD.fullmatch(name)]
    named = [i for i, name in enumerate(header) if _LABEL_FIELD.fullmatch(name)]
    key = keys[0] if len(keys) == 1 else 0
    for row in table:
        number = _number(row[key][0]) if key < len(row) else None
        if number is None:
            continue
        if len(named) == 1:
            found = [_cell(cell) for cell in row[named[0] : named[0] + 1]]
        else:
            found = [label for i, cell in enumerate(row) if i != key and (label := _cell(cell))]
        rows.append((number, found[0] if len(found) == 1 else None))
    return [Block(lines[0][0], rows)] if any(label for _, label in rows) else []


def _cells(at: int, line: str) -> list[tuple[str, int]]:
    """The texts of a row's cells and their places."""
    start = len(line) - len(line.lstrip().removeprefix("|"))
    stop = len(line.rstrip().removesuffix("|"))
    return [(m[0], at + m.start()) for m in re.compile(r"[^|]+").finditer(line, start, stop)]


def _cell(cell: tuple[str, int]) -> Label | None:
    match = _LEAF.match(cell[0])
    return None if match is None else _label(match, cell[1])


def _blocks_of_pairs(lines: Lines) -> list[Block]:
    """The blocks of pairs such as "Window 3: yes"; one ends where a number comes again."""
    blocks: list[Block] = []
    gap = "x"
    for at, line in lines:
        last = 0
        for match in _PAIR.finditer(line):
            number = int(match["number"] or match["first"])
            label = _label(match, at, "label" if match["label"] else "second")
            gap += line[last : match.start()]
            last = match.end()
            starts = not blocks or number in blocks[-1].numbers or BLANK in gap
            if starts or _ANSWER_STARTS.search(gap):
                blocks.append(Block(at + match.start()))
            blocks[-1].rows.append((number, label))
            gap = ""
        gap += line[last:] + "\n"
    return blocks
