"""Answers of judges: extracts what can be used, in any format."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from nullsae.autointerp.label_words import (
    CORRECTS,
    KEY,
    NEGATIVE,
    NEGATIVE_OF_KEY,
    OFFERS,
    POSITIVE,
    POSITIVE_OF_KEY,
    introduction,
    plain,
    shows,
)
from nullsae.autointerp.labels import labels
from nullsae.autointerp.llm.messages import Reply
from nullsae.autointerp.loose_json import Branch, Leaf, Node, branches_within, find_branches
from nullsae.autointerp.reasoning import answer_alone, has_begun

_FIELD = re.compile(
    r"(?i)(?:\w+ )?(?:intruders?|odd(?: one)?(?: out)?|answer|result|window|choice|number)(?: \w+)?"
)
_VALUE = re.compile(r"(?i)(?:[^\w-]|-(?!\d))*(?:window\W{0,3})?(?P<number>\d{1,4})(?:\.0)?\W*")
_ALONE = re.compile(r"(?im)^[^\w\n]*(?:window\W{0,3})?(?P<number>\d{1,4})[^\w\n]*$")
_CLAUSE = re.compile(
    r"(?i)(?:(?!\b(?:because|since|as|while|whereas|but)\b)(?:[^,.;!?\n]|\.(?=\d)))+"
)
_STATES = re.compile(
    r"(?i)\bintruder|\bodd one|\banswer|\\boxed|\bdo(?:es not|esn't) (?:belong|fit)"
)
_NEGATION = re.compile(
    r"(?i)\b(?:not|no(?!:)|none|neither|nor|never|cannot|unlikely|hardly)\b(?! belong| fit)|"
    r"n['\u2019]t\b(?! belong| fit)"
)
# A number; "the other 4 windows" and "3.5" name none.
_NUMBER = re.compile(
    r"(?i)(?<![\w.])\d{1,4}(?![\w%]|\.\d|\s+(?:windows|texts|examples|passages|others)\b)"
)
# What precedes the number of a window in a statement; not in "the intruder has 3 marks".
_NAMES = re.compile(
    rf"(?i)(?:^|[:=#(\[{{}}>→-]|\b(?:{KEY}|option|choice|index|is|was|be|to|out|set|them|intruder|choose|"
    r"pick|select|it['\u2019]s))[\s\"'#(\[{:]*\Z"
)
# What a number without the word "window" counts, as in "3 marks"; and what says that a window fits.
_COUNTS = re.compile(r"(?i)\s+(?!(?:is|was|because|since|as|does|doesn)\b)[a-z]")
_FITS = re.compile(r"(?i)(?<!not )(?<!n['\u2019]t )\b(?:fits?|belongs?|match(?:es)?)\b")
# What the token of a label may contain besides it.
_AROUND = " \t\n\"'`:,{}[]()|*"


@dataclass(frozen=True)
class Judgement:
    """What a judge said about one window."""

    probability: float
    """Of being active; 0 or 1 if the judge gave no probabilities."""
    is_label: bool


def judgements(reply: Reply, n_windows: int) -> dict[int, Judgement]:
    """Return what a judge said about each window it answered, by number from 1.

    The probability is P(1) / (P(0) + P(1)) from the log-probabilities at the token of each label,
    over all spellings of either among the most likely ones; else the label.
    """
    found: dict[int, Judgement] = {}
    said = labels(reply.content, n_windows)
    if said and not _is_answer(reply, min(place for _, place in said.values())):
        return found
    for number, (label, place) in said.items():
        masses = _masses(reply, place, _side, label)
        total = sum(masses.values())
        is_label = total <= 0 or len(masses) < 2
        found[number] = Judgement(float(label) if is_label else masses[1] / total, is_label)
    return found


def choice(reply: Reply, n_windows: int) -> dict[int, Judgement] | None:
    """Return the probability of each window of being active, from the judge's chosen intruder.

    It is 1 - P(window) / sum of P over the windows, from the log-probabilities at the token of the
    number; else 0 for the chosen window and 1 for the others. Windows are numbered from 1; None if
    the answer names none of them.
    """
    content = plain(answer_alone(reply.content))
    named = _named(content)
    if named is None:
        return None
    number, place = named
    if CORRECTS.search(content, place) and _names_another(content, place, number):
        return None
    later = _stated(_without_objects(content), place)
    if later is not None and later[0] != number:
        return None
    windows = range(1, n_windows + 1)
    if number not in windows or not _is_answer(reply, place):
        return None
    masses = _masses(reply, place, lambda text: _window_number(text, n_windows), number)
    total = sum(masses.values())
    if total > 0 and len(masses) > 1:
        return {n: Judgement(1 - masses.get(n, 0.0) / total, is_label=False) for n in windows}
    return {n: Judgement(float(n != number), is_label=True) for n in windows}


def _named(content: str) -> tuple[int, int] | None:
    """Return the number that an answer names last, and its position; None if ambiguous."""
    objects = [(b.start, values) for b in find_branches(content) if (values := _fields(b))]
    told = [(place, values, shows(content, place)) for place, values in objects]
    meant = [(place, values) for place, values, how in told if how is None]
    meant = meant or [(place, values) for place, values, how in told if how and how["format"]]
    if meant:
        place, values = meant[-1]
        if OFFERS.match(introduction(content, place)):
            values = [value for _, some in meant[-2:] for value in some]
        named = [_number_of(value) for value in values]
        return named[-1] if len({one and one[0] for one in named}) == 1 else None
    content = _without_objects(content)
    if stated := _stated(content, 0):
        return stated
    if alone := [*_ALONE.finditer(content)]:
        return int(alone[-1]["number"]), alone[-1].start("number")
    numbers = [*_NUMBER.finditer(content)]
    if _NEGATION.search(content) or _FITS.search(content) or len({m[0] for m in numbers}) != 1:
        return None
    name = _NAMES.search(content[: numbers[-1].start()])
    has_name = name is not None and any(character.isalpha() for character in name[0])
    if name is None or (not has_name and _COUNTS.match(content, numbers[-1].end())):
        return None
    return int(numbers[-1][0]), numbers[-1].start()


def _stated(content: str, start: int) -> tuple[int, int] | None:
    """Return the number in the last clause that names an intruder, after a position."""
    for clause in reversed([*_CLAUSE.finditer(content, start)]):
        # Unlike "I do not think that window 2 is the intruder".
        if _STATES.search(clause[0]) and not _NEGATION.search(clause[0]):
            numbers = [*_NUMBER.finditer(content, *clause.span())]
            before = clause[0][: numbers[0].start() - clause.start()] if numbers else ""
            if len(numbers) == 1 and _NAMES.search(before):
                return int(numbers[0][0]), numbers[0].start()
    return None


def _without_objects(content: str) -> str:
    """Blank the objects with keys; positions do not change."""
    for branch in find_branches(content):
        if any(key for key, _ in branch.items):
            blanked = " " * (branch.stop - branch.start)
            content = content[: branch.start] + blanked + content[branch.stop :]
    return content


def _fields(branch: Branch) -> list[Node]:
    """Return the values that may name the intruder: of an object's fields, or of objects in it."""
    named = [value for key, value in branch.items if key and _FIELD.fullmatch(key.text.strip())]
    found: list[Node] = []
    for value in named or branch.values():
        inner = branches_within(value) if isinstance(value, Leaf) else [value]
        found += [one for below in inner for one in _fields(below)] or [value] * bool(named)
    return found


def _number_of(value: Node) -> tuple[int, int] | None:
    """Return the number in a field, or in the only item of its list, and its position."""
    if isinstance(value, Branch):
        return _number_of(value.items[0][1]) if len(value.items) == 1 else None
    match = _VALUE.fullmatch(value.text)
    return None if match is None else (int(match["number"]), value.place + match.start("number"))


def _names_another(content: str, place: int, number: int) -> bool:
    """Return whether another number follows the chosen one."""
    return any(int(other[0]) != number for other in _NUMBER.finditer(content, place))


def _is_answer(reply: Reply, place: int) -> bool:
    return reply.finish_reason != "length" or has_begun(reply.content, place)


def _masses(
    reply: Reply, place: int, side: Callable[[str], int | None], said: int
) -> dict[int, float]:
    """Return the probability of each side among the alternatives of the token at a position.

    None are known if the token is only part of what was said, such as the first digit of 12.
    """
    texts = [token.text for token in reply.tokens]
    # Some servers strip the content.
    place += max(0, "".join(texts).rfind(reply.content))
    index = bisect_right(list(accumulate(map(len, texts))), place)
    masses: dict[int, float] = {}
    for token in reply.tokens[index : index + 1]:
        if side(token.text) != said:
            continue
        for text, log_probability in token.alternatives:
            which = side(text)
            if which is not None:
                masses[which] = masses.get(which, 0.0) + math.exp(log_probability)
    return masses


@lru_cache(maxsize=1024)
def _side(text: str) -> int | None:
    bare = text.strip(_AROUND).lower()
    if bare in POSITIVE or bare in POSITIVE_OF_KEY:
        return 1
    return 0 if bare in NEGATIVE or bare in NEGATIVE_OF_KEY else None


def _window_number(text: str, n_windows: int) -> int | None:
    bare = text.strip(_AROUND)
    is_number = len(bare) <= 4 and bare.isdecimal()
    return int(bare) if is_number and 1 <= int(bare) <= n_windows else None
