"""Labels in lines of an answer: tables, rows of two, lists, and pairs in sentences."""

from __future__ import annotations

import re
from typing import TypeAlias

from nullsae.autointerp.label_forms import BLANK
from nullsae.autointerp.label_words import (
    AFTER,
    CORRECTION,
    KEY_FIELD,
    KEY_WORDS,
    LABEL,
    LABEL_FIELD,
    LEAF,
    POSITIVE,
    WORDS,
    Block,
    Label,
    read_label,
    read_number,
)

_MARKS = r"[\s*_\"'`(\[]*"
_PAIR = re.compile(
    rf"""(?<![\w./])(?<!\d[:-])(?:(?P<word>{KEY_WORDS})(?:\b|_|(?=\d))[\s_\#.:=]{{0,3}})?
    \#?(?P<number>\d{{1,4}})(?:
    [\])"'*_`\\]*\s*(?:[:=|]|[-=]>|→|⇒|[\u2013\u2014]|[-.)](?=[\s*_])|\bis\b){_MARKS}
    (?:(?:is\ )?(?:active|answer|label)\W{{1,4}})?
    |[\s,;|]+(?:is_?)?(?:active|answer|label)\s*[:=]\s*["']?){LABEL}{AFTER}
    |\(\s*(?P<first>\d{{1,4}})\s*,\s*["']?(?P<second>{WORDS})["']?\s*\)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_GROUP_SEPARATOR = r"\s*(?:,\s*(?:and\b)?|&|[-\u2013\u2014]|\b(?:to|through|and)\b)\s*"
# Several windows and their label, as in "Windows 1, 2 and 5-7: no".
_GROUP = re.compile(
    rf"""(?:^[^\w\n]*|(?<![\w./]))(?P<word>{KEY_WORDS}[\s\#]+)?(?P<group>\#?\d{{1,4}}
    (?:{_GROUP_SEPARATOR}(?:{KEY_WORDS}[\s\#]+)?\#?\d{{1,4}}){{1,50}})[\])"'*_`]*\s*
    (?:[:=]|[-=]>|→|⇒|\s[\u2013\u2014-](?=\s)|\b(?:are|is)\b(?:\s+(?:all|both))?){_MARKS}{LABEL}{AFTER}""",
    re.VERBOSE | re.IGNORECASE,
)
_SPAN = re.compile(
    rf"(\d+)(?:\s*(?:[-\u2013\u2014]|\bto\b|\bthrough\b)\s*(?:{KEY_WORDS}[\s#]+)?#?(\d+))?",
    re.IGNORECASE,
)
MOST_OF_GROUP = 500
# Further labels behind one: a list, of which no one is that of the key before it.
_MORE = re.compile(r"[ \t]*[,;/]?[ \t]*[01]\b(?![ \t]*[:=|.)>→\w-])")
_LABELS = re.compile(
    rf"(?:{WORDS})\b(?:[ \t]*[,;/][ \t]*(?:{WORDS})\b(?![ \t]*[:=|)>→\w-]))*", re.IGNORECASE
)
# The label of all windows that have none of their own.
_REST = re.compile(
    rf"""\b(?:all\ (?:the\ )?others?|(?:the\ )?others|the\ rest|all\ (?:the\ )?remaining|
    remaining)\b[*_]*(?:\s+(?:windows|ones|are|is|of\ the\ windows))*[*_]*\s*
    (?:[:=]|[-=]>|→|\b(?:are|is|get)\b|\s[\u2013\u2014-]\s){_MARKS}{LABEL}{AFTER}""",
    re.VERBOSE | re.IGNORECASE,
)
# A window, what is thought of it, and its label at the end of the line.
_VERDICT = re.compile(
    rf"""[^\w\n]*(?:{KEY_WORDS}\s*)?\#?(?P<number>\d{{1,4}})[\])"'*_`]*(?:[:.)]|\s[\u2013\u2014-]\s)
    [^\n]*?(?:[-=]>|→|⇒|(?<![\d])[:=]\s|\s[\u2013\u2014-]\s){_MARKS}{LABEL}[\s*_"'`)\].!]*""",
    re.VERBOSE | re.IGNORECASE,
)
# Before a number without a word of its own, in the middle of a line.
_LEADS = re.compile(
    rf"(?:[.;!?:|>\0\n\u2014\u2013→]|\b(?:so|thus|hence|now|then|answers?|labels?|results?|"
    rf"output|{CORRECTION}),?)[\s*_\"'`#(\[{{]*\Z",
    re.IGNORECASE,
)
# What is numbered and no window.
_NO_WINDOW = re.compile(
    r"\b(?:step|stage|phase|reason|point|rule|criterion|criteria|chapter|verse|figure|table|layer|"
    r"latent|feature|neuron|section|score|confidence|level|note|attempt|version|round|draft|page|"
    r"day|class|question|part)s?[\s#*_]*\Z",
    re.IGNORECASE,
)
_PARENTHESES = re.compile(r"\([^()\n]*\)")
_ANSWER_WORD = r"(?:answers?|labels?|results?|output|response|predictions?|judge?ments?)"
# A heading with the number of a window, and its label below.
_HEADED = re.compile(
    rf"""^(?P<head>[^\w\n]*(?:{KEY_WORDS}[\s:=]*\#?\d{{1,4}}|\d{{1,4}}(?=[\])*_]*[.:])))(?P<gap>[^\w\n]*\n[^\w]*
    (?:(?:(?!.*{KEY_WORDS}\s*\#?\d).*\n){{0,3}}?[^\w\n]*(?:is_?)?(?:{_ANSWER_WORD}|active)[^\w\n]{{1,6}})?)
    (?={LABEL}[^\w\n]*(?:$|\())""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_ROW = re.compile(
    rf"\W*?(?:{KEY_WORDS}[\s_#]{{0,3}})?(?P<number>\d{{1,4}})(?:[\"'`]?\s*[,;]\s*[\"'`]?|\s+)"
    rf"{LABEL}[\s,;*_.\"'`]*",
    re.IGNORECASE,
)
_LIST = re.compile(
    rf"[^\w\n]*(?:(?:(?:so|thus|the|my|final|correct|here|is|are)\s+){{0,4}}{_ANSWER_WORD}"
    rf"(?:\s+(?:is|are|in order|for|the|windows))*[^\w\n]*)?(?P<labels>{LABEL}"
    rf"(?:(?:[\s,;|*_\"'`]+|\s+and\s+)(?:{WORDS}))*)[^\w\n]*",
    re.IGNORECASE,
)
# Text of a window that a line repeats before it answers.
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^“”\n]*”|`[^`\n]*`|<text\d*>[^<\n]*</text\d*>")
_RULE = re.compile(r"\s*:?-{2,}:?\s*")
_ITEM = re.compile(r"\w+")
# Starts the answer after a draft, at the beginning of a sentence.
_ANSWER_STARTS = re.compile(
    r"[\n.!?]\W*(?:(?:so|thus|therefore|my|the|in|here|is|are|hence)\W+)*"
    r"(?:final|answers?|results?|conclusion|corrected|correction|output|actually|wait)\b"
    r"(?!\s*(?:for|to|of)\b)",
    re.IGNORECASE,
)

Lines: TypeAlias = list[tuple[int, str]]


def blocks_of_lines(text: str, n_windows: int) -> list[Block]:
    """The blocks in tables, rows of two, lists and sentences; `text` has JSON blanked."""
    text = _HEADED.sub(lambda m: m["head"] + ":".ljust(len(m["gap"])), text)
    runs: list[tuple[str, Lines]] = []
    for match in re.finditer(r"[^\n]+", text):
        line = _without_quotes(match[0])
        kind = _kind(line)
        if runs and kind in ("blank", runs[-1][0]):
            runs[-1][1].append((match.start(), line))
        elif kind != "blank":
            runs.append((kind, [(match.start(), line)]))
    blocks: list[Block] = []
    for kind, lines in runs:
        if kind == "table":
            blocks += _block_of_table(lines)
        elif kind == "sentences":
            blocks += _blocks_of_pairs(lines, n_windows)
        elif kind == "rows" and not (len(lines) == 1 and n_windows == 2 and _is_list(lines[0][1])):
            found = ((at, _ROW.fullmatch(line)) for at, line in lines)
            rows = [(int(match["number"]), read_label(match, at)) for at, match in found if match]
            blocks.append(Block(lines[0][0], [*rows]))
        else:
            blocks.append(Block(lines[0][0], unkeyed=_items(lines)))
    # One label behind an answer is a remark.
    return [b for b in blocks if b.unkeyed is None or len(b.unkeyed) > 1 or n_windows == 1]


def _without_quotes(line: str) -> str:
    """A line with quotations blanked that hold pairs, if it says something of a window beside."""
    if _PAIR.search(line) is None:
        return line
    blanked = _QUOTED.sub(lambda m: " " * len(m[0]) if _PAIR.search(m[0], 1) else m[0], line)
    return blanked if any(character.isdigit() for character in blanked) else line


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
    numbers = [read_number(text) for text in header]
    rows: list[tuple[int, Label | None]] = []
    if len(numbers) > 1 and None not in numbers[1:]:  # one column per window
        said = [row for row in table if len(row) == len(header) and all(map(_cell, row[1:]))]
        for n, cell in zip(numbers, said[0] if len(said) == 1 else [], strict=False):
            rows += [(n, _cell(cell))] if n is not None else []
        return [Block(lines[0][0], rows)] if rows else []
    keys = [i for i, name in enumerate(header) if KEY_FIELD.fullmatch(name)]
    named = [i for i, name in enumerate(header) if LABEL_FIELD.fullmatch(name)]
    # Of several columns, such as a count and the text, that of the windows.
    keys = [i for i in keys if header[i].lower().startswith("window")] or keys
    key = keys[0] if len(keys) == 1 else 0
    for row in table:
        number = read_number(row[key][0]) if key < len(row) else None
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
    match = LEAF.match(cell[0])
    return None if match is None else read_label(match, cell[1])


def _blocks_of_pairs(lines: Lines, n_windows: int) -> list[Block]:
    """The blocks of pairs such as "Window 3: yes"; one ends where a number comes again."""
    blocks: list[Block] = []
    gap = "x"
    verdicts: list[tuple[int, tuple[int, Label | None]]] = []
    for at, line in lines:
        found = _rows_of_line(line, at)
        if not found and (verdict := _VERDICT.fullmatch(line)):
            verdicts.append((at, (int(verdict["number"]), read_label(verdict, at))))
        last = 0
        for start, stop, rows in found:
            gap += line[last:start]
            last = stop
            numbers = {number for number, _ in rows}
            starts = not blocks or numbers & blocks[-1].numbers or BLANK in gap
            if starts or _ANSWER_STARTS.search(gap):
                blocks.append(Block(at + start))
            blocks[-1].rows += rows
            gap = ""
        gap += line[last:] + "\n"
        if blocks and (rest := _REST.search(line)):
            blocks[-1].rest = read_label(rest, at)
    if not blocks and len(verdicts) > (n_windows > 1):
        blocks = [Block(verdicts[0][0], [row for _, row in verdicts])]
    return blocks


def _rows_of_line(line: str, at: int) -> list[tuple[int, int, list[tuple[int, Label | None]]]]:
    """Start, end and rows of what a line says of windows, in order."""
    found: list[tuple[int, int, list[tuple[int, Label | None]]]] = []
    for match in _GROUP.finditer(line):
        bare = not line[: match.start("group")].strip(" \t*_-\u2022>#([\"'`")
        if match["word"] or bare:
            numbers = _numbers_of(match["group"])
            rows = [
                (number, label)
                for number, label in zip(numbers, _labels_of(match, at, len(numbers)), strict=True)
            ]
            found.append((match.start(), match.end(), rows))
    groups = [(start, stop) for start, stop, _ in found]
    last, number, word = 0, -1, ""
    for match in _PAIR.finditer(line):
        if any(start <= match.start() < stop for start, stop in groups):
            continue
        own = int(match["number"] or match["first"])
        before = line[last : match.start()]
        word_before = _ITEM.findall(before)[-1:] if before[-1:].isspace() else []
        is_named = match["word"] is not None or (word and word_before == [word])
        if not is_named and _is_aside(before, last > 0, own == number + 1):
            continue
        group = "label" if match["label"] else "second"
        label = None if _MORE.match(line, match.end()) else read_label(match, at, group)
        found.append((match.start(), match.end(), [(own, label)]))
        last, number, word = match.end(), own, "".join(word_before)
    return sorted(found, key=lambda row: row[0])


def _labels_of(match: re.Match[str], at: int, n: int) -> list[Label | None]:
    """The labels of n windows named together: one for all of them, or one each."""
    one = read_label(match, at)
    said = _LABELS.match(match.string, match.start("label"))
    if said is None or len(each := [*_ITEM.finditer(said[0])]) < 2:
        return [one] * n
    labels = [(int(item[0].lower() in POSITIVE), at + said.start() + item.start()) for item in each]
    return [*labels] if len(labels) == n else [None] * n


def _is_aside(before: str, is_later: bool, is_next: bool) -> bool:
    """Whether a number and a label belong to a sentence, as in "a score of 2: 1".

    Args:
        before: what stands before on the line, behind the last pair.
        is_later: whether there is a pair before.
        is_next: whether the number is that of the last pair plus 1.
    """
    if _NO_WINDOW.search(before):
        return True
    before = _PARENTHESES.sub(" ", before)
    if is_later and "(" in before:
        return before.strip(" ,;") != "("
    words = _ITEM.findall(before)
    if not is_later and len(words) < 2:
        return False  # such as a window in another language
    if not [word for word in words if word.lower() not in ("and", "then", "so")]:
        return False
    return not (_LEADS.search(before) or (is_next and before.rstrip().endswith((",", "and"))))


def _numbers_of(group: str) -> list[int]:
    """The numbers of windows that a list of numbers and ranges names."""
    numbers: list[int] = []
    for first, last in _SPAN.findall(group):
        numbers += range(int(first), min(int(last or first), int(first) + MOST_OF_GROUP) + 1)
    return numbers
