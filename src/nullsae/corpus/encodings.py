"""The encoding of a text file, detected from its first bytes."""

from __future__ import annotations

import codecs
import re

# Without a byte order mark, the encoding is detected from this many bytes.
START_BYTES = 4096
# The largest share of zero bytes in UTF-8; English in UTF-16 has half, any script in UTF-32 more.
MOST_ZEROS = 0.35
# Byte order marks; that of UTF-32 starts with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(start: bytes) -> str:
    """Return the encoding by the byte order mark; else by the zero bytes' positions, or UTF-8.

    In UTF-16, spaces and line feeds have a zero byte in any script, always the same one of two. In
    UTF-32, the first or the last of four bytes is zero.
    """
    if marked := [name for mark, name in MARKS if start.startswith(mark)]:
        return marked[0]
    zeros = [start[at::4].count(0) for at in range(4)]
    even, odd, least = zeros[0] + zeros[2], zeros[1] + zeros[3], 2 + len(start) // 100
    if even + odd < len(start) * MOST_ZEROS and _is_plain(start):
        return "utf-8"  # zero bytes separate texts
    if odd > least and even * 10 <= odd:
        return "utf-16-le"
    if even > least and odd * 10 <= even:
        return "utf-16-be"
    if min(even, odd) > least and len(start) // 4 in (zeros[0], zeros[3]):
        return "utf-32-be" if zeros[0] > zeros[3] else "utf-32-le"
    return "utf-8"


def _is_plain(start: bytes) -> bool:
    """Return whether bytes are UTF-8 text, apart from zero bytes.

    In two-byte encodings, one of the two bytes is a control character in most scripts, and a tab in
    Devanagari and Bengali.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    is_tabs = text.count("\t") > len(text) // 4
    return not is_tabs and re.search("[\x01-\x08\x0e-\x1f\x7f]", text) is None
