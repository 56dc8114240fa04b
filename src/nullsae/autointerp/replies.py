"""Answers of judges and explainers: what can be used of them, whatever they look like."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from nullsae.autointerp.llm.messages import Reply

POSITIVE = ("1", "yes", "true")
NEGATIVE = ("0", "no", "false")
_LABEL = rf"(?P<label>{'|'.join(POSITIVE + NEGATIVE)})"
_END = r"(?![\w%]|\.\d)"
# `"3": 1`, `Window 3 = yes`, `3) 0`, `3. no`, `"window": 3, "active": 0`
_PAIR = re.compile(
    rf"""(?<![\w.])(?P<number>\d{{1,4}})["'\])*]*\s*
    (?:[:=]|->|→|[-.)]\s|,\s*["'](?:active|answer|label|value)["']\s*:)\s*["'*]*{_LABEL}{_END}""",
    re.VERBOSE | re.IGNORECASE,
)
_LIST = re.compile(r"\[([^\[\]{}]*)\]")
_ITEM = re.compile(rf"(?<![\w.]){_LABEL}{_END}", re.IGNORECASE)
_CHOICE = re.compile(r"(?:intruder|window|answer)\D{0,12}?(\d{1,4})(?!\w)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])\d{1,4}(?![\w.])")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_EXPLANATION = re.compile(r"explanation\W{0,4}:[\s*_]*", re.IGNORECASE)


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one window."""

    probability: float
    """Of being active; 0 or 1 where the judge gave no probabilities."""
    is_label: bool


def without_thoughts(content: str) -> str:
    """An answer with what stands in `<think>` blanked out; places stay what they are."""
    return _THOUGHT.sub(lambda match: " " * len(match[0]), content)


def labels(content: str, n_windows: int) -> dict[int, tuple[int, int]]:
    """Labels by window number from an answer in words, JSON or anything between.

    Numbered answers count one by one, in whatever order: a window that is missing, out of range
    or answered in two ways is left out. Lists without numbers count only when they have exactly
    one answer per window: nobody knows which one a shorter list has lost. A window's number, from
    1, gives (0 or 1, place of the label in `content`).
    """
    content = without_thoughts(content)
    found: dict[int, tuple[int, int]] = {}
    contradicted = set()
    for match in _PAIR.finditer(content):
        number, label = int(match["number"]), int(match["label"].lower() in POSITIVE)
        if number in found and found[number][0] != label:
            contradicted.add(number)
        found[number] = (label, match.start("label"))
    if found:
        return {n: found[n] for n in sorted(found) if 1 <= n <= n_windows and n not in contradicted}
    spans = [match.span(1) for match in _LIST.finditer(content)] or [(0, len(content))]
    for start, stop in reversed(spans):
        items = list(_ITEM.finditer(content, start, stop))
        if len(items) == n_windows:
            return {
                i: (int(item["label"].lower() in POSITIVE), item.start("label"))
                for i, item in enumerate(items, 1)
            }
    return {}


def judgements(reply: Reply, n_windows: int) -> dict[int, Judgement]:
    """What a judge said of each window, by number from 1; without those that it did not answer.

    P(1) / (P(0) + P(1)) from the log-probabilities at the token of each label, over all ways to
    write either that are among the most likely ones; else the label.
    """
    found = {}
    for number, (label, place) in labels(reply.content, n_windows).items():
        masses = _masses(reply, place, _side)
        total = sum(masses.values())
        if total > 0 and len(masses) == 2:
            found[number] = Judgement(masses[1] / total, is_label=False)
        else:
            found[number] = Judgement(float(label), is_label=True)
    return found


def choice(reply: Reply, n_windows: int) -> dict[int, Judgement] | None:
    """Which window a judge called the intruder, as the probability of each one of being active.

    1 - P(window) / sum of P over the windows, from the log-probabilities at the token of the
    number; else 0 for the one that was chosen and 1 for the others. Windows are numbered from 1;
    None if the answer names none of them.
    """
    content = without_thoughts(reply.content)
    named = list(_CHOICE.finditer(content))
    if named:
        number, place = int(named[-1][1]), named[-1].start(1)
    else:
        numbers = list(_NUMBER.finditer(content))
        if len({match[0] for match in numbers}) != 1:
            return None
        number, place = int(numbers[0][0]), numbers[0].start()
    windows = range(1, n_windows + 1)
    if number not in windows:
        return None
    masses = _masses(reply, place, lambda text: _window_number(text, n_windows))
    total = sum(masses.values())
    if total > 0 and len(masses) > 1:
        return {n: Judgement(1 - masses.get(n, 0.0) / total, is_label=False) for n in windows}
    return {n: Judgement(float(n != number), is_label=True) for n in windows}


def explanation(reply: Reply) -> str | None:
    """The explanation in an answer: what follows the last `Explanation:`, else its last paragraph.

    One line without quotes or Markdown around it; None if nothing is left.
    """
    content = without_thoughts(reply.content).strip()
    marked = list(_EXPLANATION.finditer(content))
    if marked:
        content = content[marked[-1].end() :].strip().split("\n\n")[0]
    else:
        content = content.split("\n\n")[-1]
    text = " ".join(content.split()).strip("*_` ")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    return text if any(character.isalnum() for character in text) else None


def _masses(reply: Reply, place: int, side: Callable[[str], int | None]) -> dict[int, float]:
    """Probability of each side among the alternatives of the token at a place of the content."""
    texts = [token.text for token in reply.tokens]
    # Some servers strip the content.
    place += max(0, "".join(texts).find(reply.content))
    index = bisect_right(list(accumulate(map(len, texts))), place)
    masses: dict[int, float] = {}
    for token in reply.tokens[index : index + 1]:
        for text, log_probability in token.alternatives:
            which = side(text)
            if which is not None:
                masses[which] = masses.get(which, 0.0) + math.exp(log_probability)
    return masses


@lru_cache(maxsize=1024)
def _side(text: str) -> int | None:
    bare = text.strip(" \t\n\"'`:,{}[]").lower()
    return 1 if bare in POSITIVE else 0 if bare in NEGATIVE else None


def _window_number(text: str, n_windows: int) -> int | None:
    bare = text.strip(" \t\n\"'`:,{}[]")
    return int(bare) if bare.isdecimal() and 1 <= int(bare) <= n_windows else None
