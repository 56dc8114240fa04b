"""The words for labels and for windows' numbers, and coherent parts of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

POSITIVE = ("1", "yes", "true")
NEGATIVE = ("0", "no", "false")
# Labels only after a window's number: alone, they are also headings, and words of a sentence.
POSITIVE_OF_KEY = (
    *("active", "oui", "ja", "sí", "si", "sì", "sim", "tak", "evet", "да"),
    *("是", "はい", "네", "예", "نعم"),
)
NEGATIVE_OF_KEY = (
    *("not active", "inactive", "non", "nein", "nee", "não", "nie", "нет"),
    *("否", "不是", "いいえ", "아니요", "아니오", "لا"),
)
# A label, 0 or 1, and its position in the text.
Label: TypeAlias = tuple[int, int]
# The number of a window as written, and its label, None if invalid. Without a number: an item of a
# list.
Row: TypeAlias = tuple[int | None, Label | None]
# Instead of a number: all windows without a row, as in "All others: 0".
REST = -1
# Replaces what has been read, or is not part of the answer.
BLANK = "\0"

WORDS = rf"(?:{'|'.join(POSITIVE + NEGATIVE)})"
# "Active: 0" and "is active: 0" name a field.
OF_KEY = (
    rf"(?:{WORDS}|(?:{'|'.join(map(re.escape, POSITIVE_OF_KEY + NEGATIVE_OF_KEY))})(?!\s*[:=]))"
)
# What may follow a label; otherwise it starts a sentence, as in "1: No cups are named".
END = r"""(?=["')\]]*\s*(?:$|[,;:|)\]}"'(\u2013\u2014→]|\.(?!\d)|\s-|
    (?:because|since|as|due|but)\b|(?:and\s+)?(?:(?:window|item|w)\s*)?\#?\d{1,4}\W{0,3}[:=|>→)]))
    (?![^\W_]|%)"""
KEY = (
    r"(?:windows?|items?|rows?|texts?|examples?|passages?|sentences?|excerpts?|samples?|snippets?|"
    r"segments?|fragments?|documents?|contexts?|parameter|number|no|nr|id|w|fenster|fen[êe]tre|ventana|"
    r"janela|finestra|окно|窗口|窗|文本|片段|ウィンドウ|テキスト|창|윈도우|(?:ال)?نافذة)"
)
CORRECTION = (
    r"\b(?:wait|actually|correct(?:ion|ed|ing)|on second thought|scratch that|sorry|i mean|hmm+|"
    r"make (?:it|that)|mistake|mislabel\w*|revis\w+|reconsider\w*|should (?:be|have been)|"
    r"w?h?oops|i meant|(?:is|are|was|were) (?:wrong|incorrect)|mixed up|typo)\b"
)
CORRECTS = re.compile(rf"(?i){CORRECTION}")
# One label replaced by another, as in "1: 0 -> 1" or "1: no, wait, yes".
_CHANGED = re.compile(
    rf"(?i)(?:[\s\"')]*(?:[-=]>|→)[\s\"'(]*|[^\n]{{0,60}}?{CORRECTION}[^\w\n]*"
    rf"(?:(?:it|is|s|that|to|should|be|no|the|answer)\b[^\w\n]+){{0,5}}){OF_KEY}\b(?!\W*[:=|])"
)
_START = re.compile(rf"(?imx)[\s\"'(\[]*(?P<label>{OF_KEY}){END}")
_NUMBER = re.compile(rf"(?i)\W*(?:{KEY}[\s#.:-]{{0,3}})??#?(\d{{1,4}})[\s.:)\]\"']*")

# Comments, echoes of a prompt's windows, and emoji.
_ASIDE = re.compile(
    r"(?s)/\*.*?\*/|<text\d*>[^<\n]*</text\d*>|[\u2600-\u27bf\ufe0f\U0001f300-\U0001faff]"
)
# A mark instead of a word, alone after a window's number or in a cell.
_MARK = re.compile(
    r"(?m)(?P<before>[:|=>→\u2013\u2014-][ \t*_]*)"
    r"(?:(?P<yes>[✅✔✓☑])|[❌❎✖✗✘☒])(?=\ufe0f?[ \t*_]*(?:$|[|,;]))"
)
_ZEROS = (0x660, 0x6F0, 0x966, 0x9E6, 0xE50)
_PLAIN = str.maketrans(
    {
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},
        **{chr(zero + i): str(i) for zero in _ZEROS for i in range(10)},
        **{"\u3001": ",", "\u060c": ",", "\u3000": " ", "\u3002": ".", "\u061b": ";", "⇒": "→"},
        **dict.fromkeys("*_`\r", " "),
    }
)
_QUOTES = str.maketrans(dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d", '"'))


# Before an answer in a requested format, before an example, and before one that was replaced.
_SHOWS = re.compile(
    r"(?i)(?:\b(?:(?P<example>for (?:example|instance)|an example|examples? (?:output|answer|"
    r"response|labels?|json)|(?<!the )examples?(?=\W*\Z)|e\.g\.|such as)|"
    r"(?P<format>format|template|schema|examples?))\b[^{}\[\]\n]{0,30}|"
    r"\b(?:(?:initial|first|previous|earlier|original|preliminary|tentative|old) (?:draft|guess|"
    r"answer|attempt|response|version|labels?|json)|draft)s?\b[^{}\[\]\n.,;]{0,30}|"
    r"^\W*(?P<other>confidences?|certainty|probabilit(?:y|ies))\W*)\Z"
)
# Before another answer that does not replace the one before it.
OFFERS = re.compile(r"(?i)\W*(?:alternativ|option\b|or\b|otherwise\b|if\b)")
_INTRODUCED_BEFORE = 300


def shows(text: str, place: int) -> re.Match[str] | None:
    """Return what says that an answer is not the judge's own, or not its last; None otherwise."""
    return _SHOWS.search(introduction(text, place))


def introduction(text: str, place: int) -> str:
    """Return what precedes an answer on its line, or the line before it if that ends in a colon."""
    before = text[max(0, place - _INTRODUCED_BEFORE) : place].rstrip(" \t\"'([{")
    if before.endswith("\n") and not before.rstrip().endswith(":"):
        return ""
    return before.rstrip().rpartition("\n")[2]


def blank(match: re.Match[str]) -> str:
    """Return spaces as long as a match."""
    return " " * len(match[0])


def without(text: str, start: int, stop: int) -> str:
    """Blank the part of a text that has been read."""
    return text[:start] + BLANK * (stop - start) + text[stop:]


def plain(text: str) -> str:
    """Convert punctuation and digits to English ones, drop Markdown; positions do not change.

    Quotation marks are converted only if there are no straight ones, because a string may contain
    others.
    """
    text = _MARK.sub(lambda mark: mark["before"] + ("1" if mark["yes"] else "0"), text)
    text = _ASIDE.sub(blank, text).translate(_PLAIN).replace("\\{", " {").replace("\\}", " }")
    return text if '"' in text else text.translate(_QUOTES)


def read_label(match: re.Match[str] | None, offset: int = 0) -> Label | None:
    """Return the label of a match, at `offset` plus its position; None if it is withdrawn."""
    if match is None or _CHANGED.match(match.string, match.end()):
        return None
    said = match["label"].lower()
    return int(said in POSITIVE or said in POSITIVE_OF_KEY), offset + match.start("label")


def first_label(text: str, offset: int = 0) -> Label | None:
    """Return the label that a text starts with."""
    return read_label(_START.match(text), offset)


def read_number(text: str) -> int | None:
    """Return the window number that a text consists of, or None."""
    match = _NUMBER.fullmatch(text)
    return None if match is None else int(match[1])


@dataclass
class Block:
    """A coherent part of an answer: one object, table or list."""

    place: int
    rows: list[Row]
    is_json: bool = False

    @property
    def has_label(self) -> bool:
        return any(label for _, label in self.rows)

    def may_go_on(self, block: Block) -> bool:
        """Return whether another block may continue this one: other windows, by number."""
        own, others = ({number for number, _ in one.rows} for one in (self, block))
        return None not in own | others and not own & others

    def by_window(self, n_windows: int) -> dict[int, Label]:
        """Return labels by window number, counted from 1."""
        rows = self.rows
        if rows and all(number is None for number, _ in rows):
            if len(rows) != n_windows or not all(label for _, label in rows):
                return {}  # it is unknown which labels a short list lacks
            rows = [(i, label) for i, (_, label) in enumerate(rows, 1)]
        said: dict[int, list[Label | None]] = {}
        for number, label in rows:
            if number is not None:
                said.setdefault(number, []).append(label)
        rest = said.pop(REST, None)
        first = 0 if 0 in said else 1
        is_sure = 1 in said or max(said, default=0) <= n_windows
        if not said or not (is_sure if first else said.keys() == set(range(n_windows))):
            return {}  # each label may belong to the next window
        if rest and first and max(said) <= n_windows:
            said = {n: said.get(n, rest) for n in range(1, n_windows + 1)}
        found = {}
        for window in range(1, n_windows + 1):
            labels = said.get(window - 1 + first, [])
            sure = [label for label in labels if label]
            if len(sure) == len(labels) and len({label for label, _ in sure}) == 1:
                found[window] = sure[-1]
        return found
