"""Escapes invisible characters, and those that reorder text, before text is shown.

Corpora, models, replies and configs may contain anything: escape sequences that clear a terminal,
overrides that reverse a sentence, tag characters that only a language model sees. Words in any
script, line breaks, tabs, emoji and the joiners in them stay.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from types import TracebackType

_SHOWN = re.compile(
    # The flag of a region, such as England's: a black flag and tags that spell its code.
    "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
    # Control characters except tab and line feed.
    "|([\x00-\x08\x0b-\x1f\x7f-\x9f"
    # Characters that set the direction of text, or end lines and paragraphs.
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    # Zero width: zero-width space, word joiner, byte order mark, invisible operators.
    "\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    # Tags, which spell invisible ASCII, and halves of surrogate pairs.
    "\U000e0000-\U000e007f\ud800-\udfff]"
    # A joiner or selector right after another has no effect; rows of them hide text.
    "|(?<=[\u200c\u200d])[\u200c\u200d]"
    "|(?<=[\ufe00-\ufe0f\U000e0100-\U000e01ef])[\ufe00-\ufe0f\U000e0100-\U000e01ef])"
)


def visible(text: str) -> str:
    r"""Return a text with control, direction and invisible characters escaped, such as \x1b.

    Line feeds and tabs stay. Text without such characters is returned unchanged.
    """
    if text.isascii() and text.isprintable():
        return text
    return _SHOWN.sub(lambda found: spelled(found[1]) if found[1] else found[0], text)


def spelled(character: str) -> str:
    r"""Return a character's Python escape: \n, \x1b, \u202e, \ud800, \U000e0041."""
    code = ord(character)
    if character in "\t\n\r":
        return {"\t": r"\t", "\n": r"\n", "\r": r"\r"}[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Record(logging.LogRecord):
    """A log record of any library."""

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return visible(super().getMessage())


def show_only_visible() -> None:
    """Escape such characters in the logs, warnings and tracebacks of this process.

    For programs, not for libraries: it affects the whole process.
    """
    logging.setLogRecordFactory(_Record)
    logging.captureWarnings(True)
    sys.excepthook = _print_traceback


def _print_traceback(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, where))))
