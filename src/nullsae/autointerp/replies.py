"""Answers of judges and explainers: what can be used of them, whatever they look like."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import accumulate

from nullsae.autointerp.label_forms import plain
from nullsae.autointerp.label_words import CORRECTION, NEGATIVE, POSITIVE
from nullsae.autointerp.labels import labels
from nullsae.autointerp.llm.messages import Reply, without_halves
from nullsae.autointerp.loose_json import Branch, Leaf, branches_within, find_branches
from nullsae.autointerp.reasoning import answer_alone, has_begun

# Words that an explanation and an example begin with, and share of all, to count as the same.
SAME_WORDS, SAME_SHARE = 6, 0.8
# Characters before a statement that are looked through for what takes it back.
MOST_CLAUSE = 200
# Characters around an object that are looked through for what makes it a part of a sentence.
MOST_FRAME = 100

_NAME = r"(?:\w+[_ ])?(?:intruders?|odd(?:_one)?(?:_out)?|answer|window|choice|number)(?:[_ ]\w+)?"
_KEY = re.compile(_NAME, re.IGNORECASE)
_VALUE = re.compile(r"\W*(?:window[\W_]{0,3})?(?P<number>\d{1,4})(?:\.0)?\W*", re.IGNORECASE)
# "The intruder is window 3", "Answer: **3**", "Window 3 does not belong"; not "is not window 3".
_STATEMENTS = re.compile(
    r"""(?:\bintruder|\bodd\ one(?:\ out)?|\banswer|\\boxed|\bdoes\ not\ (?:belong|fit))
    (?:[^\w.;!?\n}\]]{1,8}(?:is|was|be|are|would|must|should|seems?|appears?|to|the|a|here|one|out|in|my|
    i|think|opinion|most|likely|probably|clearly|definitely|therefore|thus|final|answer|choice|index|
    id|window|text|example|passage|item|option|number|no|nr|intruder|odd|that|
    set|of\ (?:the|these|them|all))
    (?=\W|_)){0,8}?[^\w\n;!?}\]]{0,8}(?:_|\n\n?)?[^\w\n;!?}\]]{0,8}(?P<after>\d{1,4})
    (?!\w|\.\d|\s*[-\u2013]\s*\d|\W+(?:or|windows|texts|examples|passages|of)\b)
    |\bwindow\W{0,4}(?P<before>\d{1,4})\W{1,4}(?:is\s+(?:clearly\s+)?the\s+(?:intruder|odd)|
    (?:does\ not|doesn't)\ (?:belong|fit))""",
    re.VERBOSE | re.IGNORECASE,
)
_ALONE = re.compile(
    r"^[^\w\n]*(?:window[\W_]{0,3})?(?P<number>\d{1,4})[^\w\n]*$", re.MULTILINE | re.IGNORECASE
)
_NEGATION = re.compile(
    r"\b(?:not|no|none|neither|nor|never|cannot|unlikely|hardly)\b|n['\u2019]t\b", re.IGNORECASE
)
_CORRECTS = re.compile(rf"\b{CORRECTION}\b", re.IGNORECASE)
_CLAUSE_ENDS = re.compile(r"[.,;:!?\n]")
_NUMBER = re.compile(r"(?<![\w.])\d{1,4}(?![\w%]|\.\d)")

# A further field of an answer below its explanation, or a rule.
_NEXT_FIELD = re.compile(
    r"\n[ \t]*(?:(?:[-=_*][ \t]*){3,}(?=\n|\Z)|"
    r"[*_#> \t-]*(?:confidence|certainty|score|examples?|evidence|"
    r"reason(?:ing|s)?|rationale|justification|notes?|key ?words?|tokens|label|category|title|"
    r"strengths?|confidence score|windows)\b[*_ \t]*[:\uff1a])",
    re.IGNORECASE,
)
# Of YAML.
_BLOCK_SCALAR = re.compile(r"\A[|>][-+]?[ \t]*\n")
_PLEASANTRY = re.compile(
    r"\W*(?:let me know|(?:i )?hope (?:this|that|it)|feel free|is there anything|would you like|"
    r"if you(?:'d| would)? (?:need|want|like|have))\b",
    re.IGNORECASE,
)
_DRAFT = re.compile(r"initial|first|draft|prelim|tentative|old|previous", re.IGNORECASE)
_LINE_START = re.compile(r"(?:\A|\n)[^\w\n]*(?:(?:final|my|the)\W+)*\Z", re.IGNORECASE)
_WORD = (
    r"(?:explanation|explication|explicaci[oó]n|explica[cç][aã]o|erkl[aä]rung|spiegazione|"
    r"解释|解釋|说明|說明|説明|설명|объяснение|التفسير|الشرح|تفسير|a\u00e7\u0131klama|wyjaśnienie|uitleg|"
    r"verklaring|förklaring|forklaring|giải thích|คำอธิบาย|व्याख्या|penjelasan)"
)
_ONLY_TAGS = re.compile(r"<[^<>\n]*>|\[/?\w+\]|```\w*")
_PAIRS = ('""', "“”", "„“", "„”", "«»", "»«", "「」", "『』", "\u2018\u2019", "''")
_MARKER = re.compile(
    rf"\[?\b{_WORD}\b(?: is\b)?[^\w\n:\uff1a]{{0,4}}(?:[:\uff1a][\s*_]*|[*_]*\n+)", re.IGNORECASE
)
# "Explanation (final):", "Explanation 1:", "Explanation for latent 5:", "Explanation = "
_DECORATED = re.compile(
    rf"(?:\A|\n)[^\w\n]*(?:(?:final|my|the)\W+)*{_WORD}(?:[*_]*\s*\([^()\n]{{1,40}}\)|\s*\#?\d{{1,4}}|"
    rf"\s+(?:for|of)\s+[^:\n]{{1,40}})?[\]*_]*\s*(?:[:\uff1a=\u2013\u2014]|[-=]>|→|-(?=\s))[\s*_]*",
    re.IGNORECASE,
)
_OTHER_NAME = r"(?:answer|conclusion|summary|description|interpretation)"
_OTHER_MARKER = re.compile(
    rf"(?:\A|\n)[^\w\n]*(?:(?:final|my|the)\W+)*{_OTHER_NAME}[\]*_]*\s*[:\uff1a][\s*_]*",
    re.IGNORECASE,
)
_FIELD = re.compile(rf"(?:\w+_)?(?:explanation|{_OTHER_NAME}|text)", re.IGNORECASE)
_TAGGED = re.compile(
    r"(?:\A|\n)[^\w\n<]*<(?P<tag>(?:\w+[_-])?(?:explanation|label|hypothesis|description|summary|interpretation|result))>"
    r"(?P<text>[^<>]*)(?:</(?P=tag)>|\Z)",
    re.IGNORECASE,
)
_WRAPPED = re.compile(
    r"\\boxed\{(?:\\text\{(?P<inner>.*)\}|(?P<boxed>.*))\}|\[(?P<bracketed>[^\[\]]*)\]|"
    r"(?:[-\u2022]+|1[.)]) +(?P<item>.*)",
    re.DOTALL,
)
_NOTHING = re.compile(
    r"\W*(?:null|none|n/a|(?:your|the)?\s*explanation(?: here)?)\W*", re.IGNORECASE
)
# Reasoning with a heading in the place of a tag, and no answer after it.
_THOUGHT = re.compile(
    r"\W*(?:my\s+)?(?:thoughts?|thinking|reasoning|analysis)(?:\s+process)?[*_]*\s*:", re.IGNORECASE
)
# A model that will not answer; an explanation speaks of tokens, not of itself.
_REFUSAL = re.compile(
    r"[\s*_]*(?:I(?:['\u2019]?m| am) (?:very |really )?sorry|Sorry|I apologi[sz]e|"
    r"I (?:cannot|can['\u2019]?t|am unable|won['\u2019]?t|am not able)|Unfortunately, I)\b"
    r".{0,80}(?:\b(?:cannot|unable|not able|help|assist|provide|determine|comply)\b|n['\u2019]t\b)",
    re.IGNORECASE | re.DOTALL,
)
# What a token of a label may hold beside it.
_AROUND = " \t\n\"'`:,{}[]()|*"


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one window."""

    probability: float
    """Of being active; 0 or 1 where the judge gave no probabilities."""
    is_label: bool


def judgements(reply: Reply, n_windows: int) -> dict[int, Judgement]:
    """What a judge said of each window, by number from 1; without those that it did not answer.

    P(1) / (P(0) + P(1)) from the log-probabilities at the token of each label, over all ways to
    write either that are among the most likely ones; else the label.
    """
    found: dict[int, Judgement] = {}
    said = labels(reply.content, n_windows)
    if said and not _is_answer(reply, min(place for _, place in said.values())):
        return found
    for number, (label, place) in said.items():
        masses = _masses(reply, place, _side)
        total = sum(masses.values())
        is_label = total <= 0 or len(masses) < 2
        found[number] = Judgement(float(label) if is_label else masses[1] / total, is_label)
    return found


def choice(reply: Reply, n_windows: int) -> dict[int, Judgement] | None:
    """Which window a judge called the intruder, as the probability of each one of being active.

    1 - P(window) / sum of P over the windows, from the log-probabilities at the token of the
    number; else 0 for the one that was chosen and 1 for the others. Windows are numbered from 1;
    None if the answer names none of them.
    """
    content = plain(answer_alone(reply.content))
    named = _named(content)
    if named is None:
        return None
    number, place = named
    if _CORRECTS.search(content, place) and _names_another(content, place, number):
        return None
    windows = range(1, n_windows + 1)
    if number not in windows or not _is_answer(reply, place):
        return None
    masses = _masses(reply, place, lambda text: _window_number(text, n_windows))
    total = sum(masses.values())
    if total > 0 and len(masses) > 1:
        return {n: Judgement(1 - masses.get(n, 0.0) / total, is_label=False) for n in windows}
    return {n: Judgement(float(n != number), is_label=True) for n in windows}


def _named(content: str) -> tuple[int, int] | None:
    """The number that an answer names last, and its place; None where it names several or none."""
    for branch in reversed(find_branches(content)):
        values = [v for k, v in branch.items if k and _KEY.fullmatch(k.text.strip())]
        if len(values) == 1:
            value = values[0]
            if isinstance(value, Branch):
                value = value.items[0][1] if len(value.items) == 1 else value
            match = _VALUE.fullmatch(value.text) if isinstance(value, Leaf) else None
            if match is None or isinstance(value, Branch):
                return None
            return int(match["number"]), value.place + match.start("number")
    for said in reversed([*_STATEMENTS.finditer(content)]):
        # "I do not think that window 2 is the intruder."
        if not _NEGATION.search(_clause_before(content, said.start())):
            group = "after" if said["after"] else "before"
            return int(said[group]), said.start(group)
    if alone := list(_ALONE.finditer(content)):
        return int(alone[-1]["number"]), alone[-1].start("number")
    numbers = list(_NUMBER.finditer(content))
    if _NEGATION.search(content) or len({match[0] for match in numbers}) != 1:
        return None
    return int(numbers[-1][0]), numbers[-1].start()


def _names_another(content: str, place: int, number: int) -> bool:
    """Whether another number stands behind the one that was chosen."""
    return any(int(other[0]) != number for other in _NUMBER.finditer(content, place))


def _clause_before(content: str, place: int) -> str:
    return _CLAUSE_ENDS.split(content[max(0, place - MOST_CLAUSE) : place])[-1]


def _is_answer(reply: Reply, place: int) -> bool:
    return reply.finish_reason != "length" or has_begun(reply.content, place)


def explanation(reply: Reply) -> str | None:
    """The explanation in an answer: what follows the last `Explanation:`, else its last paragraph.

    One line without quotes or Markdown around it; None if nothing is left. Of a reply that was cut
    it counts only if the answer had begun: the rest may be thought.
    """
    content = answer_alone(reply.content).rstrip()
    for branch in reversed(find_branches(content)):
        # Within a sentence it may be what the explanation speaks of.
        line = content[max(0, branch.start - MOST_FRAME) : branch.start].rpartition("\n")[2]
        line += content[branch.stop : branch.stop + MOST_FRAME].partition("\n")[0]
        starts = not any(c.isalnum() for c in _MARKER.sub("", _ONLY_TAGS.sub("", line)))
        if starts and (field := _field(branch)) is not None:
            return _bare(_unescaped(field.text))
    if tagged := list(_TAGGED.finditer(content)):
        return _bare(tagged[-1]["text"])
    marked = list(_MARKER.finditer(content))
    # In the middle of a line it may be a word of the explanation.
    at_start = [m for m in marked if _LINE_START.search(content, 0, m.start())]
    marked = at_start or [*_DECORATED.finditer(content)] or marked
    if marked and not _is_answer(reply, marked[-1].start()):
        return None
    if marked:
        content = _NEXT_FIELD.split(content[marked[-1].end() :].strip(), maxsplit=1)[0]
        content = _BLOCK_SCALAR.sub("", content.split("\n\n")[0])
        if "\n" in marked[-1][0]:
            content = content.lstrip("#> ")
    elif named := list(_OTHER_MARKER.finditer(content)):
        content = content[named[-1].end() :].strip().split("\n\n")[0]
    elif reply.finish_reason == "length" or _THOUGHT.match(content):
        return None
    else:
        paragraphs = content.removesuffix("```").rstrip().split("\n\n")
        said = [p for p in paragraphs if not _PLEASANTRY.match(p)]
        content = (said or paragraphs)[-1].lstrip("#> \n")
    return _bare(content)


def _field(branch: Branch) -> Leaf | None:
    """The field of an object that holds the explanation: the one of that name, else a like one."""
    named = [(key.text.strip().lower(), value) for key, value in branch.items if key]
    named = [(name, value) for name, value in named if _FIELD.fullmatch(name)]
    named.sort(key=lambda pair: ("explanation" not in pair[0], _DRAFT.search(pair[0]) is not None))
    for _, value in named[:1]:
        return value if isinstance(value, Leaf) else _field(value)
    # As a tool's argument, or the only one of a list.
    for value in branch.values():
        inner = branches_within(value) if isinstance(value, Leaf) else [value]
        if found := next((leaf for one in inner if (leaf := _field(one)) is not None), None):
            return found
    return None


def _unescaped(text: str) -> str:
    try:
        return without_halves(str(json.loads(f'"{text}"', strict=False)))
    except ValueError:
        return text


def _bare(text: str) -> str | None:
    """One line without what stands around an explanation; None if it says nothing."""
    text = " ".join(text.split()).strip("*_` ")
    if (match := _WRAPPED.fullmatch(text)) is not None:
        text = str(match[match.lastgroup or 0]).strip("*_` ")
    if len(text) > 1 and text[0] + text[-1] in _PAIRS and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    elif text.endswith('"') and text.count('"') == 1:
        text = text[:-1]  # the other one stood before the marker
    if _NOTHING.fullmatch(text) or _REFUSAL.match(text):
        return None
    return text if any(character.isalnum() for character in text) else None


def repeats(text: str, examples: Iterable[str]) -> bool:
    """Whether an explanation says again what an example of the prompt says.

    It has the same words, or begins with the same ones (the whole of it or the first six, at least
    four), or shares four fifths of its words in their order.
    """
    words = _words(text)
    for example in map(_words, examples):
        same = next(
            (i for i, (a, b) in enumerate(zip(words, example, strict=False)) if a != b), None
        )
        same = min(len(words), len(example)) if same is None else same
        if words == example or same >= SAME_WORDS or SAME_WORDS > len(words) == same >= 4:
            return True
        if SequenceMatcher(None, words, example, autojunk=False).ratio() >= SAME_SHARE:
            return True
    return False


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _masses(reply: Reply, place: int, side: Callable[[str], int | None]) -> dict[int, float]:
    """Probability of each side among the alternatives of the token at a place of the content."""
    texts = [token.text for token in reply.tokens]
    # Some servers strip the content.
    place += max(0, "".join(texts).rfind(reply.content))
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
    bare = text.strip(_AROUND).lower()
    return 1 if bare in POSITIVE else 0 if bare in NEGATIVE else None


def _window_number(text: str, n_windows: int) -> int | None:
    bare = text.strip(_AROUND)
    is_number = len(bare) <= 4 and bare.isdecimal()
    return int(bare) if is_number and 1 <= int(bare) <= n_windows else None
