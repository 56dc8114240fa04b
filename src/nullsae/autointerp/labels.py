"""Labels of windows in an answer: read by their keys, or by their place in a list that is whole."""

from __future__ import annotations

import re

from nullsae.autointerp.label_lines import blocks_of_lines
from nullsae.autointerp.label_trees import blocks_of_json
from nullsae.autointerp.label_words import CORRECTS, KEY, Block, Label, blank, first_label, plain
from nullsae.autointerp.reasoning import answer_alone

_MEANS = r"[\"']?\s*(?:[:=]|[-=]>|→|\b(?:means|is|stands for|for)\b)\s*[\"']?(?:the\s+)?"
_NO = rf"\b0{_MEANS}(?:no|not|false|in ?active|silent|absent|does)\b"
_YES = rf"\b1{_MEANS}(?:yes|true|active|present|match\w*|fits?|does|it does)\b"
# What 0 and 1 stand for.
_LEGEND = re.compile(
    rf"(?i)[(\[{{]?[\"']?(?:{_NO}[^\d\n]{{0,40}}{_YES}|{_YES}[^\d\n]{{0,40}}{_NO})"
)
_ANSWERS = re.compile(r"(?i)\b(?:final|answers?|results?|conclusion)\b")
_SENTENCE = re.compile(r"[^.!?\n]+")
_WINDOW = re.compile(rf"(?i)\b{KEY}[\s#]+(?P<number>\d{{1,4}})\b")


def labels(content: str, n_windows: int) -> dict[int, Label]:
    """Labels by window number from a reply in words, JSON or anything between.

    The last answer counts, and no reasoning. Answers with keys count one by one, in whatever order:
    a window that is missing, out of range or answered in two ways is left out. Keys from 0 count as
    such if they are exactly 0 to n - 1. A list without keys counts only if it has exactly one label
    per window: nobody knows which one a shorter list has lost. A window's number, from 1, gives
    (0 or 1, place of the label in `content`).
    """
    text = plain(answer_alone(content))
    blocks = _all_blocks(_LEGEND.sub(blank, text), n_windows)
    if not blocks and n_windows == 2:
        blocks = _all_blocks(text, n_windows)  # what looks like a legend, counted from 0
    if not blocks:
        # Of the only window also at the start of a sentence.
        label = None if n_windows > 1 or _ANSWERS.search(text) else first_label(text)
        return {1: label} if label else {}
    found = _last_answer(blocks, text, n_windows)
    last = text.find("\n", max((place for _, place in found.values()), default=0))
    for sentence in _SENTENCE.finditer(text, last if last >= 0 else len(text)):
        # "Correction: window 2 should be 0": which label counts is not read from words.
        if CORRECTS.search(sentence[0]):
            for window in _WINDOW.finditer(sentence[0]):
                found.pop(int(window["number"]), None)
    return found


def _all_blocks(text: str, n_windows: int) -> list[Block]:
    """All blocks of an answer, in order. One label behind an answer is a remark."""
    blocks, shown, rest = blocks_of_json(text)
    blocks += blocks_of_lines(rest, n_windows)
    blocks = [b for b in blocks or shown if n_windows == 1 or len(b.rows) != 1 or b.rows[0][0]]
    return sorted(blocks, key=lambda block: block.place)


def _last_answer(blocks: list[Block], text: str, n_windows: int) -> dict[int, Label]:
    """What the last block says, or the JSON before it, if it only speaks of that."""
    found = blocks[-1].by_window(n_windows)
    earlier = [place for place, block in enumerate(blocks) if block.is_json]
    if not earlier or blocks[-1].is_json or len(found) == n_windows:
        return found
    whole = blocks[earlier[-1]].by_window(n_windows)
    kept = dict(whole)
    for block in blocks[earlier[-1] + 1 :]:
        for number, label in block.by_window(n_windows).items():
            before = text[whole[number][1] : label[1]] if number in whole else ""
            if number not in whole:
                return found
            if whole[number][0] == label[0]:
                continue
            if CORRECTS.search(before):
                kept[number] = label
            elif _ANSWERS.search(before):
                return found
            else:
                kept.pop(number, None)
    return kept
