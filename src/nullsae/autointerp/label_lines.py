"""Labels in lines of an answer: tables, lists, and pairs such as "Window 3: yes"."""

from __future__ import annotations

import re
from itertools import groupby

from nullsae.autointerp.label_trees import block_of_table
from nullsae.autointerp.label_words import (
    BLANK,
    CORRECTION,
    END,
    KEY,
    OF_KEY,
    POSITIVE,
    REST,
    WORDS,
    Block,
    Label,
    Row,
    blank,
    read_label,
    without,
)

_SIGNS = str.maketrans(dict.fromkeys("#\\[]'\"“”", " "))
# Tags become signs: <window id="1">0</window> is read as window id="1":0,
_CLOSING_TAG = re.compile(r"</[^<>\n]*>")
_OPENING_TAG = re.compile(rf"(?i)<([^<>\n/][^<>\n]*?)(/?)>((?:\s*(?={WORDS}\s*<))?)")
# Text of a window that a line quotes before its answer.
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^“”\n]*”")

_FIELD = r"(?:is\ )?(?:active|answers?|labels?|results?|output|response|predictions?|judge?ments?)"
_WINDOW = rf"(?:{KEY}[ \t.:=]{{0,3}})?\d{{1,4}}"
_DASH = r"[\u2013\u2014-]"
_IS = r"[:=|→]|[-=]>"
AND = rf"\s*(?:,\s*(?:and\b)?|&|{_DASH}|\b(?:to|through|and)\b)\s*(?:{KEY}\s+)?"
_REMARK = r"[) \t]{0,3}(?:\([^()\n]{0,80}\)[ \t]*)?"
# "3: 0", "Window 3 - no", "Windows 1, 2 and 5-7 are 0", "All others: 0"
_PAIR = re.compile(
    rf"""(?imx)(?<![\w./-])(?<!\d[:=])(?<!\d[:=]\ )(?<!\d\ [:=]\ )
    (?:(?P<word>{KEY})(?:\b|(?=\d))[ \t.:=]{{0,3}})?(?:
    (?P<group>\d{{1,4}}(?:{AND}\d{{1,4}}){{1,50}}){_REMARK}
        (?:{_IS}|\b(?:are|is)\b(?:\s+(?:all|both))?)|
    (?P<number>\d{{1,4}}){_REMARK}
        (?:{_IS}|{_DASH}(?=\s)|[\u2013\u2014.)]|\bis\b|(?<=\))|[ \t,;|](?=[ \t]*{_FIELD}\s*[:=]))|
    (?P<rest>(?:all\ )?(?:the\ )?(?:others?|rest|remaining)\b(?:\s+(?:of\ the\ )?(?:windows|ones))?)
        \s*(?:{_IS}|\b(?:are|is|get)\b|\s{_DASH}\s))
    [ \t(]*(?:{_FIELD}[^\w\n,;]{{1,4}})?(?P<labels>(?P<label>{OF_KEY})(?![^\W_])
    (?:[ \t]*[,;/]?[ \t]*{WORDS}\b(?![ \t]*[:=|.)>→\w-]))*){END}"""
)
_SPAN = re.compile(rf"(?i)(\d+)(?:\s*(?:{_DASH}|\b(?:to|through)\b)\s*(?:{KEY}\s+)?(\d+))?")
MOST_OF_GROUP = 500
# Characters before a pair that are searched for signs that it is part of a sentence.
MOST_BEFORE = 200
# A window, reasoning about it, and its label at the end of the line.
_VERDICT = re.compile(
    rf"""(?imx)^\W*(?:{KEY}\W{{0,3}})?(?P<number>\d{{1,4}})[\s)]*(?:[:.)]|\s{_DASH}\s)[^\n]*?
    (?:[-=]>|→|(?<!\d)[:=]\s|\s{_DASH}\s|\.\.\.|
    \b{_FIELD}\ (?:is|would\ be)\s)[\s(]*(?P<label>{WORDS})(?=[\s).!]*$)"""
)
# A row of two without a sign in between, "1, 0", and (1, 0).
_ROW = re.compile(
    rf"""(?imx)(?P<key>^\W*?{_WINDOW}|\(\s*\d{{1,4}})(?P<gap>\s*[,;]\s*|[ \t]+)
    (?={WORDS}(?:\s*\)|[ \t.,;]*$))"""
)
# A heading with the number of a window, and its label below.
_HEADED = re.compile(
    rf"""(?imx)^(?P<key>\W*(?:{KEY}[\s:=]*\d{{1,4}}|\d{{1,4}}(?=[\s)]*[.:])))(?P<gap>[^\w\n]*\n\W*
    (?:(?:(?!\W*{_WINDOW}\W*$).*\n){{0,3}}?[^\w\n]*{_FIELD}[^\w\n]{{1,6}})?)
    (?={WORDS}[^\w\n]*(?:$|\())"""
)
_ITEM = re.compile(rf"(?i){WORDS}\b")
_LIST = re.compile(
    rf"""(?imx)^\W*?(?:(?:(?:so|thus|the|my|final|correct|here|is|are)\s+){{0,4}}{_FIELD}
    (?:\s+(?:is|are|in\ order|for|the|windows))*[^\w\n]*)?(?P<labels>{WORDS}\b
    (?:(?:[ \t,;]+|[ \t.,;]*\n[\s\u2022-]*|\s+and\s+){WORDS}\b)*)[^\w\n]*$(?!\s*\d)"""
)
# What may precede a number without a word in the middle of a line.
_LEADS = re.compile(
    rf"(?i)(?:[.;!?:|>\0\u2013\u2014→]|\b(?:so|then|{_FIELD}|{CORRECTION}),?)[\s(]*\Z"
)
# What precedes the number of a window that a sentence only mentions.
_SPEAKS_OF = re.compile(
    r"(?i)\b(?:as|in|like|than|from|with|except|excluding|besides)(?: for)?\s*\Z"
)
_PARENTHESES = re.compile(r"\([^()\n]*\)")
# Starts the answer after a draft, at the beginning of a sentence.
_ANSWER_STARTS = re.compile(
    r"(?i)[\n.!?]\W*(?:(?:so|thus|therefore|my|the|in|here|is|are|hence)\W+)*(?:final|answers?|"
    r"results?|conclusion|corrected|correction|output|actually|wait)\b(?!\s*(?:for|to|of)\b)"
)


def blocks_of_lines(text: str, n_windows: int) -> list[Block]:
    """Return the blocks in tables, lists and sentences; JSON in `text` must be blanked."""
    if not re.search(r"\w", text):
        return []
    text = re.sub(r"<br ?/?>", lambda m: "\n".ljust(len(m[0])), text)
    text = _CLOSING_TAG.sub(lambda m: ",".ljust(len(m[0])), _OPENING_TAG.sub(_with_sign, text))
    text = re.sub(r"[^\n]+", _without_quotes, text).translate(_SIGNS)
    text = _HEADED.sub(_with_colon, text)
    if n_windows != 2 or len(_ROW.findall(text)) > 1:  # else "1, 0" is a list
        text = _ROW.sub(_with_colon, text)
    blocks: list[Block] = []
    for is_table, run in groupby(re.finditer(r"[^\n]+", text), lambda line: _is_table(line[0])):
        if is_table and (lines := [(line.start(), line[0]) for line in run]):
            blocks += block_of_table(lines)
            text = without(text, lines[0][0], lines[-1][0] + len(lines[-1][1]))
    for match in _LIST.finditer(text):
        labels = _items(match)
        if n_windows == 1 or len(labels) > 1:
            blocks.append(Block(match.start(), [(None, label) for label in labels]))
            text = without(text, *match.span())
    return blocks + (_blocks_of_pairs(text) or _block_of_verdicts(text, n_windows))


def _without_quotes(line: re.Match[str]) -> str:
    """Remove quotations from a line if the rest of it mentions a window."""
    if '"' not in line[0] and "“" not in line[0]:
        return line[0]
    blanked = _QUOTED.sub(
        lambda m: blank(m) if re.search(r"\w\W+\w+\W+\w|\d\W+\d", m[0]) else m[0], line[0]
    )
    return blanked if any(character.isdigit() for character in blanked) else line[0]


def _with_sign(tag: re.Match[str]) -> str:
    return f" {tag[1]}{', ' if tag[2] else ':'}{' ' * len(tag[3])}"


def _with_colon(match: re.Match[str]) -> str:
    return match["key"] + ":".ljust(len(match["gap"]))


def _is_table(line: str) -> bool:
    return line.lstrip().startswith("|") or (line.count("|") > 1 and len(_PAIR.findall(line)) < 2)


def _items(match: re.Match[str]) -> list[Label]:
    """Return the labels of a list."""
    return [
        (int(item[0].lower() in POSITIVE), item.start())
        for item in _ITEM.finditer(match.string, *match.span("labels"))
    ]


def _blocks_of_pairs(text: str) -> list[Block]:
    """Return the blocks of pairs; a repeated number, or another answer, starts a new block."""
    blocks: list[Block] = []
    seen: set[int] = set()
    last, number = 0, -1
    for match in _PAIR.finditer(text):
        numbers = [REST] if match["rest"] else numbers_of(match["group"] or match["number"])
        gap = text[last : match.start()]
        if _is_aside(match, gap, last > 0, numbers[:1] == [number + 1]):
            continue
        labels: list[Label | None] = [*_items(match)]
        if len(labels) < 2:
            labels = [read_label(match)] * len(numbers)
        elif len(labels) != len(numbers):
            labels = [None] * len(numbers)
        # An immediately repeated number is contradictory; 0 starts another count.
        goes_on = numbers == [number] or (seen.isdisjoint(numbers) and numbers != [0])
        if not blocks or not goes_on or BLANK in gap or _ANSWER_STARTS.search(gap):
            blocks.append(Block(match.start(), []))
            seen.clear()
        blocks[-1].rows += zip(numbers, labels, strict=True)
        seen.update(numbers)
        last, number = match.end(), (numbers or [-1])[-1]
    return blocks


def _block_of_verdicts(text: str, n_windows: int) -> list[Block]:
    found = [*_VERDICT.finditer(text)]
    rows: list[Row] = [(int(match["number"]), read_label(match)) for match in found]
    return [Block(found[0].start(), rows)] if len(rows) > (n_windows > 1) else []


def _is_aside(match: re.Match[str], gap: str, is_later: bool, is_next: bool) -> bool:
    """Return whether a number and a label belong to a sentence, as in "a score of 2: 1".

    Args:
        match: the pair.
        gap: the text between the previous pair and this one.
        is_later: whether there is a previous pair.
        is_next: whether the number is that of the previous pair plus 1.
    """
    _, newline, before = gap.rpartition("\n")
    before = before[-MOST_BEFORE:]
    if match["word"] or match["rest"]:
        return _SPEAKS_OF.search(before) is not None
    before = _PARENTHESES.sub(" ", before)
    if is_later and not newline and "(" in before:
        return before.strip(" ,;)") != "("
    if not re.search(r"(?i)(?!(?:and|then|so)\b)\b\w", before):
        return False
    return not (_LEADS.search(before) or (is_next and before.rstrip().endswith((",", "and"))))


def numbers_of(group: str) -> list[int]:
    """Return the numbers of windows in a list of numbers and ranges."""
    numbers: list[int] = []
    for first, last in _SPAN.findall(group):
        numbers += range(int(first), min(int(last or first), int(first) + MOST_OF_GROUP) + 1)
    return numbers
