"""Labels in lines of an answer: tables, rows of two, lists, and pairs in sentences."""

from __future__ import annotations

import re
from typing import TypeAlias

from nullsae.autointerp.label_words import (
    AFTER,
    KEY_FIELD,
    KEY_WORDS,
    LABEL,
    LABEL_FIELD,
    LEAF,
    NEGATIVE,
    POSITIVE,
    Block,
    Label,
    read_label,
    read_number,
)

# In the place of JSON that has been read.
BLANK = "\0"
_MARKS = r"[\s*_\"'`(\[]*"
_PAIR = re.compile(
    rf"""(?<![\w./])(?<!\d[:-])(?:{KEY_WORDS}(?:\b|_|(?=\d))[\s_\#.:]{{0,3}})?\#?(?P<number>\d{{1,4}})
    [\])"'*_`\\]*\s*(?:[:\uff1a=|]|[-=]>|→|⇒|[\u2013\u2014]|[-.)](?=[\s*_])|\bis\b){_MARKS}
    (?:(?:is\ )?(?:active|answer|label)\W{{1,4}})?{LABEL}{AFTER}
    |\(\s*(?P<first>\d{{1,4}})\s*,\s*["']?(?P<second>{"|".join(POSITIVE + NEGATIVE)})["']?\s*\)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_ANSWER_WORD = r"(?:answers?|labels?|results?|output|response|predictions?|judge?ments?)"
# A heading with the number of a window, and its label below.
_HEADED = re.compile(
    rf"""^(?P<head>[^\w\n]*{KEY_WORDS}\s*\#?\d{{1,4}})(?P<gap>[^\w\n]*\n[^\w]*
    (?:(?:(?!.*{KEY_WORDS}\s*\#?\d).*\n){{0,3}}[^\w\n]*(?:{_ANSWER_WORD}|active)[^\w\n]{{1,6}})?)
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
    rf"(?:(?:[\s,;|*_\"'`]+|\s+and\s+)(?:{'|'.join(POSITIVE + NEGATIVE)}))*)[^\w\n]*",
    re.IGNORECASE,
)
# Text of a window that a line repeats before it answers.
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|`[^`\n]*`|<text\d*>[^<\n]*</text\d*>")
_RULE = re.compile(r"\s*:?-{2,}:?\s*")
_ITEM = re.compile(r"\w+")
# Starts the answer after a draft, at the beginning of a sentence.
_ANSWER_STARTS = re.compile(
    r"(?:\A|[\n.!?])\W*(?:(?:so|thus|therefore|my|the|in|here|is|are|hence)\W+)*"
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
            blocks += _blocks_of_pairs(lines)
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


def _blocks_of_pairs(lines: Lines) -> list[Block]:
    """The blocks of pairs such as "Window 3: yes"; one ends where a number comes again."""
    blocks: list[Block] = []
    gap = "x"
    for at, line in lines:
        last = 0
        for match in _PAIR.finditer(line):
            number = int(match["number"] or match["first"])
            label = read_label(match, at, "label" if match["label"] else "second")
            gap += line[last : match.start()]
            last = match.end()
            starts = not blocks or number in blocks[-1].numbers or BLANK in gap
            if starts or _ANSWER_STARTS.search(gap):
                blocks.append(Block(at + match.start()))
            blocks[-1].rows.append((number, label))
            gap = ""
        gap += line[last:] + "\n"
    return blocks
