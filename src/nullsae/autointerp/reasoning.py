"""Finds the answer in a reply, after the reasoning.

Models reason in many notations, and servers and chat templates leave more or less of it in the
content: both tags, only the closing one (the template opened the thought), only the opening one
(the thought was cut), or none. `docs/replies.md` describes how each is read.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import lru_cache
from itertools import islice

# <think>, <seed:think>, <antThinking>, <think_fast>, <reasoning>, <inner_monologue> ...
_NAME = (
    r"(?:\w+[:_.-]|ant)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratch_?pad|analysis|"
    r"monologue|cot|chain_of_thought)(?:[_-]\w+)?"
)
_THOUGHT = r"(?:thinking|thought|reasoning)"
# What opens and closes a thought.
_TAGS = (
    (rf"<\s*{_NAME}(?:\s[^<>]*)?>", rf"<\s*/\s*{_NAME}\s*>"),
    (rf"&lt;{_NAME}&gt;", rf"&lt;/{_NAME}&gt;"),
    (
        rf"<\|(?!begin|start|end|\w+_end\b){_NAME}\|>",
        rf"<\|(?:/{_NAME}|(?!begin|start){_NAME}(?<=_end))\|>",
    ),
    (rf"<\|(?:begin|start)(?:_of)?_{_THOUGHT}\|>", rf"<\|end(?:_of)?_{_THOUGHT}\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|channel>\s*thought", r"<channel\|>"),
    (r"<unused94>(?:thought)?", r"<unused95>"),
    (r"\[think(?:ing)?\]", r"\[/think(?:ing)?\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<details[^<>]*(?:reason|think|thought)[^<>]*>", r"</details>"),
    (r"Thinking\.\.\.(?=\s*\n)", r"\.\.\.done thinking\."),
    (r"Here(?:'s| is) my thought process:", r"Here(?:'s| is) my (?:final )?response:"),
    (r"<\|think\|>", r"<\|end\|>\s*(?:<\|begin\|>\s*assistant\s*)?<\|content\|>"),
)
_OPEN, _CLOSE = ("|".join(signs) for signs in zip(*_TAGS, strict=True))
_TAG = re.compile(rf"(?i)(?P<close>{_CLOSE})|(?P<open>{_OPEN})")

# OpenAI's harmony format: messages in channels, with the answer in `final`.
_CHANNEL = re.compile(
    r"(?i)(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(?P<channel>analysis|commentary|final)"
    r"(?:\s+to=\S+)?\s*(?:<\|constrain\|>\s*\w+)?\s*(?:<\|message\|>)?"
)
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|call|start)\|>")
# The same if a server has dropped the special tokens.
_BARE_FINAL = re.compile(r"assistant\s*final(?=\W|[A-Z\d]|$)")
_BARE_ANALYSIS = re.compile(r"\s*(?:analysis|assistantanalysis)(?=[A-Z\"'])")

_ANSWER = r"(?:(?:final[_ ]?)?(?:answer|response|output|solution)|final)"
_BOUNDS = (
    (rf"<{_ANSWER}>", rf"</{_ANSWER}>"),
    (rf"\[{_ANSWER}\](?!\s*:)", rf"\[/{_ANSWER}\]"),
    (r"\[BEGIN (?:FINAL )?(?:RESPONSE|ANSWER)\]", r"\[END (?:FINAL )?(?:RESPONSE|ANSWER)\]"),
    (r"<\|begin_of_(?:solution|box)\|>", r"<\|end_of_(?:solution|box)\|>"),
    (r"<\|start_response\|>", r"<\|end_response\|>"),
)
_OPEN_ANSWER, _CLOSE_ANSWER = (
    re.compile("(?i)" + "|".join(signs)) for signs in zip(*_BOUNDS, strict=True)
)
_SPECIAL = (
    r"(?:<\|[\w▁]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|</?s>|<(?:bos|eos)>|<(?:start|end)_of_turn>)"
)
_FIRST_TOKENS = re.compile(rf"\s*(?:{_SPECIAL}\s*)+")
# After a space it may be something the answer mentions.
_LAST_TOKENS = re.compile(rf"(?:(?<=\S)|(?<=\n)){_SPECIAL}(?:\s*{_SPECIAL})*\s*\Z")
# If servers do not stop at the end of a turn, models continue with another question and answer.
_ROLE = r"(?:user|human|assistant|system|model)"
_NEXT_TURN = re.compile(
    r"(?i)(?:(?<=\S)|(?<=\n))(?:<\|(?:im_end|eot(?:_id)?|eom_id|end(?:_?of_?(?:turn|text))?(?:_token)?)"
    r"\|>|</s>|<eos>|<end_of_turn>|<turn\|>|<\uff5cend▁of▁sentence\uff5c>)\s*"
    rf"(?:<\|(?:im_start|begin|start(?:_header_id|_of_turn_token)?|{_ROLE})\|>|<\|turn>|<s>|<bos>|"
    rf"<start_of_turn>|\[INST\]|<\uff5c{_ROLE}\uff5c>|{_ROLE}\b)"
)
# The same in plain text: Llama 3's role after an answer, a dialogue, another question of ours.
_NEXT_SPEAKER = re.compile(
    r"(?i)(?<=\S)assistant[ \t]*\n\n|"
    r"\n[ \t]*[*#]*[ \t]*(?P<user>user|human|(?<=# )instruction)\**[ \t]*:|"
    r"\n\s{0,4}(?:Explanation:.*\s{1,4})?(?P<question>Window 1: <text\d*>)"
)
_SPEAKS = re.compile(r"(?i)\n[ \t]*[*#]*[ \t]*(?:assistant|ai|model|response)\**[ \t]*:")
_ANSWERED = re.compile(r"(?i)(?:[}\]`]|(?:\A|\n)\W*explanation:.+)\s*\Z")
MOST_TURNS = 20
_MARKER = re.compile(r"(?i)explanation\W{0,4}:")
_ONLY_TOKENS = re.compile(r"(?:\s|<[^<>\n]*>|\[/?\w+\])*\Z")
_FRAME = re.compile(
    r"(?i)(?:json|my|the|final|answers?|labels?|windows?|intruder|active|explanation|is|[\W\d_])*"
)
# A single one is usually an apostrophe.
_QUOTATION = re.compile(r"""(["`])[^\n]*?\1|“[^\n”]*”|'[<\[◁][^\n']*[>\]▷]'""")


def answer_alone(content: str) -> str:
    """Blank everything in a reply except its answer; positions do not change.

    If the reasoning never reached an answer, everything is blank.
    """
    start, stop = _within_channels(content)
    start, stop = _of_first_turn(content, start, stop)
    start, stop = _within_answer_tags(content, start, stop)
    start, stop = _without_special_tokens(content, start, stop)
    return " " * start + content[start:stop] + " " * (len(content) - stop)


def has_begun(content: str, place: int) -> bool:
    """Return whether a truncated reply had reached its answer before a position.

    If the template opens the thought, a truncated reply may be all thought, without a tag. It is an
    answer after a finished thought, or if only its frame precedes it.
    """
    answer = answer_alone(content)
    n_blanked = len(answer) - len(answer.lstrip())
    return bool(content[:n_blanked].strip()) or _FRAME.fullmatch(answer, 0, place) is not None


def _within_channels(content: str) -> tuple[int, int]:
    """Return the last message of the channel `final`, or everything without channels."""
    headers = _unquoted(_CHANNEL, content)
    if headers:
        finals = [m for m in headers if m["channel"].lower() == "final"]
        # What follows the last answer in another channel is not an answer, and does not undo it.
        if not finals:
            return len(content), len(content)
        start = finals[-1].end()
        end = _END_OF_MESSAGE.search(content, start)
        later = [m.start() for m in headers if m.start() >= start]
        return start, min([len(content), *later, *([end.start()] if end else [])])
    bare = list(_BARE_FINAL.finditer(content))
    if bare:
        return bare[-1].end(), len(content)
    if _BARE_ANALYSIS.match(content):
        return len(content), len(content)
    return 0, len(content)


def _of_first_turn(content: str, start: int, stop: int) -> tuple[int, int]:
    """Return what follows the thoughts, in the first turn that contains anything else."""
    for turn in _unquoted(_NEXT_TURN, content, start, stop)[:MOST_TURNS]:
        # A thought without an opening tag may mention turns.
        later = _TAG.search(content, turn.start(), stop)
        if not (later and later["close"]):
            first, last = _after_thoughts(content, start, turn.start())
            if _says_something(content[first:last]):
                return first, last
    start, stop = _after_thoughts(content, start, stop)
    for speaker in islice(_NEXT_SPEAKER.finditer(content, start, stop), MOST_TURNS):
        if speaker["user"] and not _SPEAKS.search(content, speaker.end(), stop):
            break
        is_answered = not speaker["question"] or _ANSWERED.search(content, start, speaker.start())
        if is_answered and _says_something(content[start : speaker.start()]):
            return start, speaker.start()
    return start, stop


def _after_thoughts(content: str, start: int, stop: int) -> tuple[int, int]:
    """Return what follows the last thought; nothing if that did not end."""
    depth, opened_first, opened_at, answer = 0, False, -1, start
    before: list[tuple[int, int]] = []
    for tag in _unquoted(_TAG, content, start, stop):
        if tag["open"]:
            if depth == 0:
                if _is_mention(content, tag, stop):
                    continue
                opened_first = opened_first or not content[start : tag.start()].strip()
            # A template's own opening tag and the model's right after it count once.
            if not (depth and not content[opened_at : tag.start()].strip()):
                depth += 1
            opened_at = tag.end()
        elif depth:
            depth -= 1
            answer = tag.end()
        elif opened_first and not _starts_line(content, tag.start()):
            continue  # the thought had both tags, so the answer mentions one
        elif not _is_mention(content, tag, stop):
            if opened_first:
                before.append((answer, tag.start()))
            answer = tag.end()
    if depth:
        return stop, stop
    # A stray tag after the answer closes nothing.
    while before and not _says_something(content[answer:stop]):
        answer, stop = before.pop()
    return answer, stop


def _within_answer_tags(content: str, start: int, stop: int) -> tuple[int, int]:
    """Return the content of the last <answer> ... </answer>, or everything without one."""
    for tag in reversed(_unquoted(_OPEN_ANSWER, content, start, stop)):
        if _says_something(content[tag.end() : stop]):
            close = _CLOSE_ANSWER.search(content, tag.end(), stop)
            return tag.end(), close.start() if close else stop
    last = _unquoted(_CLOSE_ANSWER, content, start, stop)
    if last and not content[last[-1].end() : stop].strip():
        return start, last[-1].start()
    return start, stop


def _without_special_tokens(content: str, start: int, stop: int) -> tuple[int, int]:
    """Strip tokens such as <|im_end|> around an answer."""
    if (first := _FIRST_TOKENS.match(content, start, stop)) is not None:
        start = first.end()
    last = _LAST_TOKENS.search(content, start, stop)
    return start, last.start() if last else stop


def _unquoted(
    pattern: re.Pattern[str], content: str, start: int = 0, stop: int | None = None
) -> list[re.Match[str]]:
    """Return the matches of a pattern outside quotation marks."""
    found, quoted = [], _quotations(content)
    for match in pattern.finditer(content, start, len(content) if stop is None else stop):
        before = bisect_left(quoted, (match.start(), 0)) - 1
        if before < 0 or quoted[before][1] <= match.start():
            found.append(match)
    return found


@lru_cache(maxsize=8)
def _quotations(content: str) -> list[tuple[int, int]]:
    """Return starts and ends of quotations within lines; braces separate values of JSON."""
    return [
        quotation.span()
        for line in re.finditer(r"[^\n]+", content)
        for quotation in _QUOTATION.finditer(content, *line.span())
        if not set(quotation[0]) & set("{}")
        if quotation[1] is None or line[0].count(quotation[1]) % 2 == 0
    ]


def _is_mention(content: str, tag: re.Match[str], stop: int) -> bool:
    """Return whether an explanation mentions a tag in the middle of a sentence."""
    line = content[content.rfind("\n", 0, tag.start()) + 1 : tag.start()]
    if not _MARKER.search(line) or _MARKER.search(content, tag.end(), stop):
        return False
    inside_sentence = re.search(r"[\w:,(]\s*\Z", line) is not None
    return inside_sentence and re.match(r"\s+[a-z(]|[,;.)]", content[tag.end() : stop]) is not None


def _starts_line(content: str, place: int) -> bool:
    return _ONLY_TOKENS.match(content, content.rfind("\n", 0, place) + 1, place) is not None


def _says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)
