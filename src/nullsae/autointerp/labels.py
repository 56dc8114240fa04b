"""Labels of windows in an answer: read by key, or by position in a complete list."""

from __future__ import annotations

import re

from nullsae.autointerp.label_lines import AND, blocks_of_lines, numbers_of
from nullsae.autointerp.label_trees import blocks_of_json
from nullsae.autointerp.label_words import (
    CORRECTS,
    KEY,
    OFFERS,
    Block,
    Label,
    blank,
    first_label,
    introduction,
    plain,
    shows,
)
from nullsae.autointerp.reasoning import answer_alone

_MEANS = r"[\"']?\s*(?:[:=]|[-=]>|→|\b(?:means|is|stands for|for)\b)\s*[\"']?(?:the\s+)?"
_NO = rf"\b0{_MEANS}(?:no|not|false|in ?active|silent|absent|does)\b"
_YES = rf"\b1{_MEANS}(?:yes|true|active|present|match\w*|fits?|does|it does)\b"
# An explanation of what 0 and 1 mean.
_LEGEND = re.compile(
    rf"(?i)[(\[{{]?[\"']?(?:{_NO}[^\d\n]{{0,40}}{_YES}|{_YES}[^\d\n]{{0,40}}{_NO})"
)
_TEX = re.compile(r"\\(?:boxed|text\w*|math\w+)(?=\s*\{)")
# What may be the number of the only window, before words or numbers.
_NUMBERED = re.compile(r"[\s\"'(\[]*[01][ \t]*[:.)][ \t]*\w")
_ANSWERS = re.compile(r"(?i)\b(?:final|answers?|results?|conclusion)\b")
_SENTENCE = re.compile(r"[^.!?\n]+")
# The windows that a sentence mentions, unlike the label in "window 2 should be 1".
_WINDOWS = re.compile(
    rf"(?i)(?<!be )(?<!is )(?<!to )(?<!\w)(?:{KEY}[\s#]+)?(?P<group>\d{{1,4}}(?:{AND}\d{{1,4}})*)\b"
)


def labels(content: str, n_windows: int) -> dict[int, Label]:
    """Return labels by window number from a reply in words, JSON or anything in between.

    The last answer counts, and reasoning does not. Answers with keys count one by one, in any
    order: a window that is missing, out of range or contradictory is left out. Keys from 0 are
    accepted if they are exactly 0 to n - 1. A list without keys counts only if it has exactly one
    label per window, because it is unknown which one a shorter list lacks. A window's number, from
    1, maps to (0 or 1, position of the label in `content`).
    """
    text = _TEX.sub(blank, plain(answer_alone(content)))
    blocks = _all_blocks(_LEGEND.sub(blank, text), n_windows)
    if not blocks and n_windows == 2:
        blocks = _all_blocks(text, n_windows)  # what looked like a legend, counted from 0
    if not blocks:
        # For a single window, the label may also start a sentence.
        is_unclear = n_windows > 1 or _ANSWERS.search(text) or _NUMBERED.match(text)
        label = None if is_unclear else first_label(text)
        return {1: label} if label else {}
    found = _last_answer(blocks, text, n_windows)
    if len(blocks) > 1 and OFFERS.match(introduction(text, blocks[-1].place)):
        both = blocks[-2].by_window(n_windows)
        found = {n: label for n, label in found.items() if n in both and both[n][0] == label[0]}
    last = text.find("\n", max((place for _, place in found.values()), default=0))
    for sentence in _SENTENCE.finditer(text, last if last >= 0 else len(text)):
        # "Correction: window 2 should be 0": the new label is not parsed from prose.
        if CORRECTS.search(sentence[0]):
            for windows in _WINDOWS.finditer(sentence[0]):
                for number in numbers_of(windows["group"]):
                    found.pop(number, None)
    return found


def _all_blocks(text: str, n_windows: int) -> list[Block]:
    """Return the blocks that may be the answer, in order.

    A single label after an answer is a remark. An example is not an answer; what follows the word
    "format", or a draft, is one if it is complete and there is none (or no complete one) besides.
    """
    blocks, rest = blocks_of_json(text)
    blocks += blocks_of_lines(rest, n_windows)
    blocks = [b for b in blocks if n_windows == 1 or len(b.rows) != 1 or b.rows[0][0]]

    def is_whole(block: Block) -> bool:
        return len(block.by_window(n_windows)) == n_windows

    told = [(block, shows(text, block.place)) for block in blocks]
    meant = [block for block, how in told if how is None]
    if not any(map(is_whole, meant)):
        whole = [(block, how) for block, how in told if how and is_whole(block)]
        meant += [block for block, how in whole if how["format"]]
        meant = meant or [b for b, how in whole if not (how["example"] or how["other"])]
    return sorted(meant, key=lambda block: block.place)


def _last_answer(blocks: list[Block], text: str, n_windows: int) -> dict[int, Label]:
    """Return the last block's labels, or the JSON before it if that block only comments on it."""
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
