"""Explanations in replies: what was answered, and whether it repeats an example of the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import SequenceMatcher

from nullsae.autointerp.label_words import blank
from nullsae.autointerp.llm.messages import Reply, without_halves
from nullsae.autointerp.loose_json import Branch, Leaf, branches_within, find_branches
from nullsae.autointerp.reasoning import answer_alone, has_begun

# Equal words at the start, or share of equal words, for two texts to count as the same.
SAME_WORDS, SAME_SHARE = 6, 0.8
# Characters around an object that are searched for signs that it is part of a sentence.
MOST_FRAME = 100

_OFFER = (
    r"(?:let me know|(?:i )?hope (?:this|that|it)|feel free|is there anything|would you like|"
    r"if you(?:'d| would)? (?:need|want|like|have))\b"
)
_PLEASANTRY = re.compile(rf"(?i)\W*{_OFFER}")
# Another field below the explanation, a rule, or an offer of help.
_WHAT_FOLLOWS = re.compile(
    r"(?i)\n[ \t]*(?:(?:[-=_*][ \t]*){3,}(?=\n|\Z)|[*_#> \t(-]*(?:\w+ )?(?:confidence(?: score)?|"
    r"certainty|score|examples?|evidence|reason(?:ing|s)?|rationale|justification|notes?|"
    r"key ?words?|tokens|label|category|title|strengths?|windows|details|summary)\b"
    r"[*_ \t]*[:\uff1a])|"
    rf"(?<=[.!?])\s+{_OFFER}"
)
# Block scalars of YAML.
_BLOCK_SCALAR = re.compile(r"\A[|>][-+]?[ \t]*\n")
_FENCE = re.compile(r"(?m)^[ \t]*```\w*[ \t]*$|```\s*\Z")
_DRAFT = re.compile(r"(?i)initial|first|draft|prelim|tentative|old|previous")
_WORD = (
    r"(?:explanation|explication|explicaci[oó]n|explica[cç][aã]o|erkl[aä]rung|spiegazione|"
    r"解释|解釋|说明|說明|説明|설명|объяснение|التفسير|الشرح|تفسير|a\u00e7\u0131klama|wyjaśnienie|uitleg|"
    r"verklaring|förklaring|forklaring|giải thích|คำอธิบาย|व्याख्या|penjelasan)"
)
_ONLY_TAGS = re.compile(r"<[^<>\n]*>|\[/?\w+\]|```\w*")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*]*[^\s*])\1(?![\w*])")
_MARKED = re.compile(r"<<(\w[^<>\n]*)>>")
_PAIRS = ("``", "__", '""', "“”", "„“", "„”", "«»", "»«", "「」", "『』", "\u2018\u2019", "''")
_OTHER_WORD = (
    r"(?:answer|conclusion|summary|description|interpretation|pattern|hypothesis|label|output)"
)
# In the middle of a line, it may be a word of the explanation.
_MARKER = re.compile(rf"(?i)\b{_WORD}\b(?: is\b)?[^\w\n:\uff1a]{{0,4}}[:\uff1a][*_]*\s*")
# "**Explanation:**", "## Explanation" above it, "Explanation (final):", "Explanation of latent 5 ="
_HEADING, _OTHER_HEADING = (
    re.compile(
        rf"""(?imx)^[^\w\n]*(?:(?:final|my|the|so|revised|updated|best)\W+)*{word}\b
        (?:[*_]*\ *\([^()\n]{{1,40}}\)|\ *\#?\d{{1,4}}|\ +(?:for|of)\ +[^:\n]{{1,40}})?
        (?:\ (?:is|would\ be)\b)?[^\w\n:\uff1a]{{0,4}}?
        (?:[:\uff1a=\u2013\u2014]|[-=]>|→|-(?=\s)|\n)[*_]*\s*"""
    )
    for word in (_WORD, _OTHER_WORD)
)
_FIELD = re.compile(rf"(?i)(?:\w+_)?(?:explanation|{_OTHER_WORD}|text)")
_TAGGED = re.compile(
    r"(?i)(?:\A|\n)[^\w\n<]*<(?P<tag>(?:\w+[_-])?(?:explanation|label|hypothesis|description|summary|interpretation|result))>"
    r"(?P<text>[^<>]*)(?:</(?P=tag)>|\Z)"
)
_WRAPPED = re.compile(
    r"(?s)\$*\s*\\boxed\{(?:\\text\{(?P<inner>.*)\}|(?P<boxed>.*))\}\s*\$*|"
    r"\$?\\text\{(?P<tex>[^{}]*)\}\$?|\[(?P<bracketed>[^\[\]]*)\]|"
    r"(?:[-\u2022]+|1[.)]) +(?P<item>.*)"
)
_NOTHING = re.compile(
    r"(?i)\W*(?:null|none|n/a|unknown|todo|tbd|"
    r"(?:(?:your|the|an|insert|write)\s+)*explanation(?: here)?)\W*"
)
# Reasoning under a heading instead of a tag, with no answer after it.
_THOUGHT = re.compile(
    r"(?i)\W*(?:my\s+)?(?:thoughts?|thinking|reasoning|analysis)(?:\s+process)?[*_]*\s*:"
)
# A model that refuses or asks back; an explanation is about tokens, not about the model itself.
_REFUSAL = re.compile(
    r"(?is)[\s*_]*(?:(?:I(?:['\u2019]?m| am) (?:very |really )?sorry|Sorry|I apologi[sz]e|"
    r"I (?:cannot|can['\u2019]?t|am unable|won['\u2019]?t|am not able|do not|don['\u2019]t|did not|"
    r"didn['\u2019]t)|Unfortunately, I|As an? (?:AI|(?:large )?language model))\b"
    r".{0,80}(?:\b(?:cannot|unable|not able|help|assist|provide|determine|comply|enough|"
    r"(?:the|any) windows)\b|n['\u2019]t\b)|"
    r"(?:Please|(?:Could|Can) you(?: please)?) (?:provide|share|send|give|paste) "
    r"(?:the|me|us|your|more|some|any|a|an|it|them)\b)"
)


def explanation(reply: Reply) -> str | None:
    """Return the explanation in an answer: after the last `Explanation:`, else the last paragraph.

    It is one line without surrounding quotes or Markdown; None if nothing is left. In a truncated
    reply, it counts only if the answer had begun: the rest may be reasoning.
    """
    content = _FENCE.sub(blank, answer_alone(reply.content)).rstrip()
    for branch in reversed(find_branches(content)):
        # Within a sentence, it may be something the explanation mentions.
        line = content[max(0, branch.start - MOST_FRAME) : branch.start].rpartition("\n")[2]
        line += content[branch.stop : branch.stop + MOST_FRAME].partition("\n")[0]
        starts = not any(c.isalnum() for c in _MARKER.sub("", _ONLY_TAGS.sub("", line)))
        if starts and (field := _field(branch)) is not None:
            return _bare(_unescaped(field.text))
    if tagged := list(_TAGGED.finditer(content)):
        return _bare(tagged[-1]["text"])
    marked = [*_HEADING.finditer(content)] or [*_MARKER.finditer(content)]
    if marked and reply.is_cut and not has_begun(reply.content, marked[-1].start()):
        return None
    if marked:
        content = _WHAT_FOLLOWS.split(content[marked[-1].end() :].strip(), maxsplit=1)[0]
        content = _BLOCK_SCALAR.sub("", content.split("\n\n")[0])
        if "\n" in marked[-1][0]:
            content = content.lstrip("#> ")
    elif named := [*_OTHER_HEADING.finditer(content)]:
        content = content[named[-1].end() :].strip().split("\n\n")[0]
    elif reply.is_cut or _THOUGHT.match(content):
        return None
    else:
        paragraphs = content.split("\n\n")
        said = [p for p in paragraphs if not _PLEASANTRY.match(p)]
        content = (said or paragraphs)[-1].lstrip("#> \n")
    return _bare(content)


def _field(branch: Branch) -> Leaf | None:
    """Return the field of an object with the explanation: by name, else by a similar name."""
    named = [(key.text.strip().lower(), value) for key, value in branch.items if key]
    named = [(name, value) for name, value in named if _FIELD.fullmatch(name)]
    named.sort(key=lambda pair: ("explanation" not in pair[0], _DRAFT.search(pair[0]) is not None))
    for _, value in named[:1]:
        if isinstance(value, Branch) and value.kind == "[" and len(value.items) == 1:
            value = value.items[0][1]
        return value if isinstance(value, Leaf) else _field(value)
    # It may be a tool's argument, or the only item of a list.
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
    """Return one line without an explanation's surroundings; None if it is empty."""
    text = _EMPHASIS.sub(r"\2", _MARKED.sub(r"\1", " ".join(text.split()))).strip("* ")
    if (match := _WRAPPED.fullmatch(text)) is not None:
        text = str(match[match.lastgroup or 0]).strip("* ")
    if len(text) > 1 and text[0] + text[-1] in _PAIRS and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    elif text.endswith('"') and text.count('"') == 1:
        text = text[:-1]  # the other quote was before the marker
    if _NOTHING.fullmatch(text) or _REFUSAL.match(text):
        return None
    return text if any(character.isalnum() for character in text) else None


def repeats(text: str, examples: Iterable[str]) -> bool:
    """Return whether an explanation repeats an example of the prompt.

    It has the same words, or starts with the same ones (all of it or the first six, at least four),
    or shares four fifths of its words in order.
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
