"""Which characters of a text are escaped."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest

from nullsae.core.errors import UserError
from nullsae.core.visible import visible

BIDIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
HIDDEN = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "a\rb\x00c\x7f": r"a\rb\x00c\x7f",
    "\x9b31mred\x85": r"\x9b31mred\x85",
    "invoice\u202efdp.exe": r"invoice\u202efdp.exe",
    "\u2066a\u2069\u200f\u200e\u061c": r"\u2066a\u2069\u200f\u200e\u061c",
    "one\u2028two\u2029": r"one\u2028two\u2029",
    "zero\u200bwidth\ufeff\u2060": r"zero\u200bwidth\ufeff\u2060",
    "half \ud83d of a pair \udc00": r"half \ud83d of a pair \udc00",
    "tag\U000e0041\U000e007f": r"tag\U000e0041\U000e007f",
    "\U0001f3f4\U000e0069\U000e0067\U000e006e\U000e006f\U000e0072\U000e0065\U000e0020": (
        "\U0001f3f4" + r"\U000e0069\U000e0067\U000e006e\U000e006f\U000e0072\U000e0065\U000e0020"
    ),
    "a\u200d\u200c\u200d": "a\u200d" + r"\u200c\u200d",
    "b\ufe0f\ufe0e\U000e0101": "b\ufe0f" + r"\ufe0e\U000e0101",
}


@pytest.mark.parametrize(("text", "shown"), HIDDEN.items(), ids=map(ascii, HIDDEN))
def test_hidden_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown
    assert visible(text).encode("utf-8").decode() == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tab\tline\nline\n",
        r"a spelled \x1b or \u202e is what somebody wrote",
        "Straße, naïve, e\u0301, ﬁ, 漢字, かな, 한국어, ไทย, देवनागरी",
        "שלום עולם, مرحبا بالعالم, می\u200cخواهم, क्\u200dष",  # noqa: RUF001
        "👨\u200d👩\u200d👧\u200d👦 ❤\ufe0f\u200d🔥 🏳\ufe0f\u200d🌈 👍🏽 🇮🇹 1\ufe0f\u20e3",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "soft\u00adhyphen, no\u00a0break, thin\u2009space, \u0600\u06dd",
        "葛\U000e0100城",
    ],
    ids=ascii,
)
def test_words_of_any_script_stay_unchanged(text: str) -> None:
    assert visible(text) == text


def test_every_control_character_of_unicode_is_escaped() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    controls = [c for c in every if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")]
    assert [c for c in controls if visible(c) == c] == ["\t", "\n"]
    moving = [c for c in every if unicodedata.bidirectional(c) in BIDIRECTIONAL]
    assert len(moving) == 9
    assert not [c for c in moving if visible(c) == c]
    letters = [c for c in every if unicodedata.category(c)[0] in "LMNPS"]
    assert [c for c in letters if visible(c) != c] == []


def test_a_user_error_contains_no_control_characters() -> None:
    assert str(UserError("config: title: \x1b[2J\nnext")) == "config: title: \\x1b[2J\nnext"


PROGRAM = """
import logging, sys, warnings
from nullsae.core.visible import show_only_visible
show_only_visible()
logging.basicConfig(format="%(message)s")
logging.getLogger("a.library").warning("model %s", "\\x1b[2J")
warnings.warn("odd \\u202e")
raise ValueError("at last \\x07")
"""


def test_logs_warnings_and_tracebacks_of_a_program_contain_no_control_characters() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, encoding="utf-8"
    )
    assert r"model \x1b[2J" in done.stderr
    assert r"odd \u202e" in done.stderr
    assert r"ValueError: at last \x07" in done.stderr
    assert visible(done.stderr) == done.stderr


def test_importing_the_library_leaves_other_loggers_alone() -> None:
    program = (
        "import logging, nullsae.core.visible, nullsae.sae.files; "
        "assert logging.getLogRecordFactory() is logging.LogRecord"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
