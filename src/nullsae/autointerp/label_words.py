"""Labels of windows and their numbers: words that both JSON and lines of an answer are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

POSITIVE = ("1", "yes", "true")
NEGATIVE = ("0", "no", "false")
# A label, 0 or 1, and its place in the text.
Label: TypeAlias = tuple[int, int]
WORDS = "|".join(POSITIVE + NEGATIVE)
LABEL = rf"(?P<label>{WORDS})"
# What may follow a label: else it is the beginning of a sentence, as in "1: No cups are named".
AFTER = r"""(?=[*_"'`)\]]*\s*(?:$|[,;:|)\]}"'*_`(]|\.(?!\d)|\s[-\u2013\u2014]|[\u2013\u2014→]|<br|
    [\u2600-\u27bf\U0001f300-\U0001faff]|(?:because|since|as|due|but)\b|
    (?:and\s+)?(?:(?:window|item|w)\s*)?\#?\d{1,4}\W{0,3}[:=|>→]))(?![^\W_]|%)"""
KEY_WORDS = (
    r"(?:windows?|items?|rows?|texts?|examples?|passages?|sentences?|excerpts?|samples?|snippets?|"
    r"segments?|fragments?|documents?|contexts?|number|no|nr|id|w|fenster|fen[êe]tre|ventana|"
    r"janela|finestra|окно|窗口|窗|文本|片段|ウィンドウ|テキスト|창)"
)
_NUMBER = re.compile(
    rf"\W*(?:{KEY_WORDS}?[\s_#.:-]{{0,3}})??\#?(\d{{1,4}})[\s.:)*_\]`\"']*", re.IGNORECASE
)
CORRECTION = (
    r"(?:wait|actually|correct(?:ion|ed|ing)|on second thought|scratch that|sorry|i mean|hmm+|"
    r"make (?:it|that)|mistake|mislabel\w*|revis\w+|should (?:be|have been))"
)
# One label taken back for another, as in "1: 0 -> 1" or "1: no, wait, yes".
_CHANGED = re.compile(
    rf"(?:[\s*_\"'`)]*(?:[-=]>|→|⇒)[\s*_\"'`(]*|[^\n]{{0,60}}?\b{CORRECTION}\b[^\w\n]*"
    rf"(?:(?:it|is|it's|that|to|should|be|no|the|answer)\b[^\w\n]+){{0,5}})"
    rf"(?:{WORDS})\b(?!\W*[:=|])",
    re.IGNORECASE,
)
LEAF = re.compile(rf"[\s*_\"'`(\[]*{LABEL}{AFTER}", re.VERBOSE | re.IGNORECASE | re.MULTILINE)
KEY_FIELD = re.compile(rf"{KEY_WORDS}(?:_?(?:id|number|index|no))?s?|index|#|n", re.IGNORECASE)
LABEL_FIELD = re.compile(
    r"(?:is_?)?(?:active|answer|label|value|pred(?:iction)?|result|verdict|judge?ment|decision|"
    r"fit|match|activat(?:es|ed|ion)|response|output|present|(?:contains|matches|fits)(?:_\w+)?)"
    r"(?:e?s)?",
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
    rest: Label | None = None
    """What all windows have that no row names, as in "All others: 0"."""
    is_json: bool = False

    @property
    def numbers(self) -> set[int]:
        return {number for number, _ in self.rows}

    def by_window(self, n_windows: int) -> dict[int, Label]:
        """Labels by window number, counted from 1."""
        if self.unkeyed is not None:
            return dict(enumerate(self.unkeyed, 1)) if len(self.unkeyed) == n_windows else {}
        if not self.rows:
            return {}
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
        if self.rest is not None and first == 1 and max(self.numbers) <= n_windows:
            found = {**dict.fromkeys(range(1, n_windows + 1), self.rest), **found}
        return {n: found[n] for n in sorted(found) if 1 <= n <= n_windows and n not in contradicted}


def read_label(match: re.Match[str], offset: int = 0, group: str = "label") -> Label | None:
    """The label of a match, at its place behind `offset`; None if another takes it back."""
    if _CHANGED.match(match.string, match.end()):
        return None
    return int(match[group].lower() in POSITIVE), offset + match.start(group)


def read_number(text: str) -> int | None:
    """The number of a window that a text names, with nothing else of meaning; else None."""
    match = _NUMBER.fullmatch(text)
    return None if match is None else int(match[1])
