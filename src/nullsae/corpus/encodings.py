"""What a text file is, detected from its first bytes: its encoding, or no text at all."""

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

# How files begin that are no text, and what to do with each.
NO_TEXT = (
    (
        re.compile(rb"version https://git-lfs\.github\.com/spec/"),
        "only a pointer to the file, of Git LFS; fetch the file with: git lfs pull",
    ),
    (re.compile(rb"\x1f\x8b"), "compressed by gzip; give its name the ending .gz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "compressed by zstd; give its name the ending .zst"),
    (re.compile(rb"\x04\x22\x4d\x18"), "compressed by lz4; give its name the ending .lz4"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "compressed by bzip2; give its name the ending .bz2"),
    (re.compile(rb"\xfd7zXZ\x00"), "compressed by xz; decompress it"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive; unpack it"),
    (re.compile(rb"PAR1[\x00-\x1f]"), "a Parquet file; give its name the ending .parquet"),
    (re.compile(rb"ARROW1\x00"), "an Arrow file; write it as Parquet"),
    (re.compile(rb"%PDF-\d"), "a PDF; extract its text"),
)


def no_text(start: bytes) -> str | None:
    """Return what a file is that begins so, and what to do with it; None if it may be text."""
    return next((said for beginning, said in NO_TEXT if beginning.match(start)), None)


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
