"""Answers of the scripted server as a judge that knows the answers, or a bad one."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

WINDOW = re.compile(r"^Window (\d+): ?(.*)$", re.MULTILINE)
EXPLANATION = re.compile(r"^Explanation: (.*)$", re.MULTILINE)


def _windows(text: str) -> list[tuple[str, str]]:
    return WINDOW.findall(text)


def oracle(text: str, body: dict[str, Any]) -> str:
    """Explain by the marked word; judge by its presence (and its marks, if any are shown)."""
    windows = _windows(text)
    if not windows:
        return "{}"
    explanation = EXPLANATION.findall(text)
    if not explanation:
        marked = re.findall(r"<<\s*(\w+)\s*>>", text)
        if "intruder" in body["messages"][0]["content"]:
            words = [re.findall(r"<<\s*(\w+)\s*>>", line) for _, line in windows]
            every = [w for ws in words for w in ws]
            common = max(every, key=every.count, default="")
            alone = [n for (n, _), ws in zip(windows, words, strict=True) if common not in ws]
            return json.dumps({"intruder": int((alone or ["1"])[0])})
        return f"I think so.\nExplanation: {max(set(marked), key=marked.count)}"
    word = explanation[-1].split()[0]
    shown = "<<" in "".join(line for _, line in windows)
    found = {
        number: int(bool(re.search(rf"<<[^>]*\b{word}\b" if shown else rf"\b{word}\b", line)))
        for number, line in windows
    }
    return json.dumps(found)


def instructed(text: str, body: dict[str, Any]) -> str:
    """Answer as `oracle` if the first message contains instructions."""
    told = body["messages"][0]["content"].startswith("You are ")
    return oracle(text, body) if told else "What am I to do with these windows?"


def quoted(text: str, body: dict[str, Any]) -> str:
    """Answer as `oracle` if the explanation is one JSON text; otherwise give no answer."""
    for shown in EXPLANATION.findall(text):
        text = text.replace(shown, json.loads(shown).replace("\n", " "))
    return oracle(text, body)


def forgetful(text: str, body: dict[str, Any]) -> str:
    """Answer about every second window, last first; say nothing useful about a lone pair."""
    found = json.loads(oracle(text, body))
    return json.dumps(dict(reversed(list(found.items())[::2])))


def stubborn(text: str, body: dict[str, Any]) -> str:
    """Apologize, unless reminded."""
    return oracle(text, body) if "This is attempt" in text else "I am sorry, I cannot say."


def hopeless(text: str, body: dict[str, Any]) -> str:
    """Apologizes."""
    return "I am sorry, I cannot say."


def lists(text: str, body: dict[str, Any]) -> str:
    """Answer with an unnumbered list, one label short for more than two windows."""
    answers = list(json.loads(oracle(text, body)).values())
    return json.dumps(answers[:-1] if len(answers) > 2 else answers)


def plausible(text: str, body: dict[str, Any]) -> str:
    """Give an explanation, or labels, by a hash of the question."""
    if "Strengths:" in text:
        return f"Explanation: words of kind {zlib.crc32(text.encode()):08x}"
    return json.dumps({n: zlib.crc32(line.encode()) % 2 for n, line in _windows(text)})


EXAMPLES = (
    "vessels for drinks, such as cups, pots and kettles, and sometimes the drink itself.",
    'the hyphen between the two numbers of a sports score, such as "3-1" or "6-4".',
)


def parrot_0(text: str, body: dict[str, Any]) -> str:
    """Explain everything by the first example of the prompt."""
    return f"Explanation: {EXAMPLES[0]}"


def parrot_1(text: str, body: dict[str, Any]) -> str:
    """Start with the beginning of the second example."""
    return f"Explanation: {EXAMPLES[1][:40].upper()} and so on"


def parrot_once_0(text: str, body: dict[str, Any]) -> str:
    return oracle(text, body) if "This is attempt" in text else parrot_0(text, body)


def parrot_once_1(text: str, body: dict[str, Any]) -> str:
    return oracle(text, body) if "This is attempt" in text else parrot_1(text, body)


def _drafted(text: str, body: dict[str, Any]) -> tuple[str, str]:
    """Return wrong draft answers, and the right ones."""
    right = oracle(text, body)
    found = json.loads(right)
    if "intruder" in found:
        n = len(_windows(text))
        return f"The intruder is window {found['intruder'] % n + 1}? Hm.", right
    wrong = {number: 1 - label for number, label in found.items()}
    return "So far: " + " ".join(f"Window {n}: {label}." for n, label in wrong.items()), right


def think_closed(text: str, body: dict[str, Any]) -> str:
    return "{}\n</think>\n\n{}".format(*_drafted(text, body))


def think_both(text: str, body: dict[str, Any]) -> str:
    draft, right = _drafted(text, body)
    return f"<think>\n{draft}<think>{right[:-1]}</think>\n{draft}</think>{right}"


def harmony(text: str, body: dict[str, Any]) -> str:
    draft, right = _drafted(text, body)
    return (
        f"<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final"
        f"<|message|>{right}<|return|>"
    )


def bracketed(text: str, body: dict[str, Any]) -> str:
    return "[THINK]{}[/THINK]{}".format(*_drafted(text, body))


def untagged(text: str, body: dict[str, Any]) -> str:
    return "{}\n\nFinal answer:\n```json\n{}\n```".format(*_drafted(text, body))
