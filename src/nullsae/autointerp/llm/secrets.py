"""What is sent to an endpoint and must not come back into a file, a log or a message."""

from __future__ import annotations

import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterator, Mapping
from functools import cached_property
from html import unescape
from html.entities import html5
from urllib.parse import unquote

# A header value such as `X-Tenant: 1` is not secret, and occurs in many answers.
SHORTEST_SECRET = 8
BLANK = "***"
# Rounds of decoding, because a key may be encoded more than once.
ROUNDS = 4
# Invisible characters that may occur between two characters of a key.
_UNSEEN = re.compile(r"[\s\x00-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+")
_ESCAPE = re.compile(
    r"\\+(?:u\{0*([0-9a-f]{1,5})\}|(?-i:U000)([0-9a-f]{5})|u([0-9a-f]{4})|x([0-9a-f]{2})|"
    r"([0-3][0-7]{2})|([\x21-\x7e]))",
    re.IGNORECASE,
)


class Secrets:
    """The values of secret headers, found in a text in any spelling."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = dict(headers)
        # "Bearer KEY": only the key is secret.
        found = {value.rpartition(" ")[2] for value in headers.values()}
        self._values = sorted((v for v in found if len(v) >= SHORTEST_SECRET), key=len)[::-1]

    def blank_bytes(self, content: bytes) -> bytes:
        """Remove the values from a response, as they were sent."""
        for value in self._values:
            if value.encode() in content:
                content = content.replace(value.encode(), BLANK.encode())
        return content

    def blank(self, text: str) -> str:
        """Remove the values from a text.

        They are found in any case, with JSON escapes, percent encoding, HTML entities, any nesting
        of these, base64, hexadecimal digits, and with invisible characters in between. If their
        position is unclear, the whole text is blanked.
        no place can be told, the text is blanked as a whole.
        """
        if not self.is_in(text):
            return text
        blanked = self._pattern.sub(BLANK, text)
        return BLANK if self.is_in(blanked) else blanked

    def is_in(self, text: str) -> bool:
        """Return whether a text contains one of the values, in any spelling."""
        if not self._values:
            return False
        return any(needle in form for form in _forms(text) for needle in self._needles)

    @cached_property
    def _needles(self) -> tuple[str, ...]:
        """What to look for in the `_plain` forms of a text."""
        every = {form for value in self._values for form in (value, *_encoded(value))}
        return tuple(_plain(form) for form in every)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        every = [form for value in self._values for form in (value, *_encoded(value))]
        between = f"(?:{_UNSEEN.pattern})?"
        ways = (between.join(map(_written, form)) for form in every)
        return re.compile("|".join(ways), re.IGNORECASE)


NO_SECRETS = Secrets({})


def _forms(text: str) -> Iterator[str]:
    """Yield a text, and the result of each round of decoding, all `_plain`."""
    for _ in range(ROUNDS):
        yield _plain(text)
        decoded = unescape(unquote(_ESCAPE.sub(_unescaped, text)))
        if decoded == text:
            return
        text = decoded
    yield _plain(text)


def _plain(text: str) -> str:
    return _UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold()


def _unescaped(match: re.Match[str]) -> str:
    braces, eight, four, two, octal, sign = match.groups()
    if sign is not None:
        return " " if sign in "nrtbf" else str(sign)
    return (
        chr(int(octal, 8)) if octal else chr(min(int(braces or eight or four or two, 16), 0x10FFFF))
    )


def _encoded(value: str) -> Iterator[str]:
    """Yield base64, for each offset in its groups of three bytes, and hexadecimal digits."""
    data = value.encode()
    yield data.hex()
    for before in range(3):
        # Only the characters that depend on the value alone.
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        for signs in (b"+/", b"-_"):
            yield b64encode(b"\0" * before + data, altchars=signs).decode()[first:last]


def _written(character: str) -> str:
    """Return a pattern for all spellings of a character."""
    codes = {ord(c) for c in (character, character.lower(), character.upper()) if len(c) == 1}
    names = [name for name, value in html5.items() if value == character]
    ways = [rf"\\*{re.escape(character)}", *(f"&{re.escape(name)}" for name in names)]
    for code in codes:
        ways += [rf"\\+u\{{0*{code:x}\}}", rf"\\+u{code:04x}", rf"\\+x{code:02x}"]
        ways += [rf"%(?:25)*{code:02x}", rf"&#0*{code};?", rf"&#x0*{code:x};?"]
        ways += [rf"\\+{code:03o}"]
    return f"(?:{'|'.join(ways)})"
