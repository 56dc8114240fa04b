"""Forms of an answer that are told before it is read: signs of other scripts, legends, XML."""

from __future__ import annotations

import re

from nullsae.autointerp.label_words import KEY_FIELD, LABEL, LABEL_FIELD, Block, read_label

# In the place of what has been read, or is no answer.
BLANK = "\0"
_PLAIN = str.maketrans(
    {
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},
        **{
            chr(zero + i): str(i) for zero in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50) for i in range(10)
        },
        **dict.fromkeys("\u3001\u060c", ","),
        **{"\u3000": " ", "\u3002": ".", "\u061b": ";"},
    }
)
_QUOTES = str.maketrans(dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d", '"'))
_MEANS = r"[\"'`]?\s*(?:[:=]|[-=]>|→|\bmeans\b|\bis\b|\bstands for\b|\bfor\b)\s*[\"'`]?(?:the\s+)?"
_NO = rf"\b0{_MEANS}(?:no|not|false|in_?active|silent|absent|does)\b"
_YES = rf"\b1{_MEANS}(?:yes|true|active|present|match\w*|fits?|does|it does)\b"
# What 0 and 1 stand for.
_LEGEND = re.compile(
    rf"[(\[{{]?[\"'`]?(?:{_NO}[^\d\n]{{0,40}}{_YES}|{_YES}[^\d\n]{{0,40}}{_NO})", re.IGNORECASE
)
_NAME = r"[A-Za-z][\w.:-]{0,30}"
# <window id="1">0</window>, <window_2>1</window_2>, <parameter=3>0</parameter>
_KEYED = re.compile(
    rf"<(?!(?:text\d*|h\d)\b)(?:{_NAME}?(?<!\d)(?P<name>\d{{1,4}})|{_NAME}[^<>\d]{{0,20}}"
    rf"(?<!\d)(?P<attribute>\d{{1,4}})[\"']?)\s*>\s*(?:<{_NAME}>[^<>]*</{_NAME}>\s*){{0,3}}?"
    rf"(?:<(?P<field>{_NAME})>\s*)?{LABEL}\s*</",
    re.IGNORECASE,
)
# <number>1</number><active>0</active>, and cells of a table
_BESIDE = re.compile(
    rf"<(?P<key>{_NAME})>\s*\#?(?P<number>\d{{1,4}})\s*</(?P=key)>\s*"
    rf"<(?P<field>{_NAME})>\s*{LABEL}\s*</",
    re.IGNORECASE,
)


# <window number="1" active="0"/>
_ATTRIBUTES = re.compile(
    rf"<{_NAME}\s+(?:{_NAME}=)[\"']?\#?(?P<number>\d{{1,4}})[\"']?\s+(?P<field>{_NAME})="
    rf"[\"']?{LABEL}[\"']?[\s/>]",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """A text in the signs of English: digits, punctuation; each sign stays where it is.

    Quotation marks too, if the text has no straight ones: else a string may hold others.
    """
    text = text.translate(_PLAIN).replace("\\{", " {").replace("\\}", " }")
    return text if '"' in text else text.translate(_QUOTES)


def without_legend(text: str) -> str:
    """A text in which nothing says what 0 and 1 stand for."""
    return _LEGEND.sub(lambda match: " " * len(match[0]), text)


def blocks_of_tags(text: str) -> tuple[list[Block], str]:
    """The block in XML or HTML, if there is one, and the text with it blanked."""
    rows = []
    for match in _KEYED.finditer(text):
        if match["field"] is None or LABEL_FIELD.fullmatch(match["field"]):
            rows.append((match.start(), int(match["name"] or match["attribute"]), match))
    if not rows:
        for match in [*_BESIDE.finditer(text), *_ATTRIBUTES.finditer(text)]:
            key, field = match.groupdict().get("key") or "number", match["field"]
            if key == "td" or (KEY_FIELD.fullmatch(key) and LABEL_FIELD.fullmatch(field)):
                rows.append((match.start(), int(match["number"]), match))
    if not rows:
        return [], text
    first, last = rows[0][0], rows[-1][2].end()
    block = Block(first, [(number, read_label(match)) for _, number, match in rows])
    return [block], text[:first] + BLANK * (last - first) + text[last:]
