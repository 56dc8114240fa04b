"""Read the log of a running job."""

from __future__ import annotations

import re
from pathlib import Path

from nullsae.core.visible import visible

HEAD_BYTES, TAIL_BYTES = 2_048, 8_192
# As `core.progress.LogLines` writes it: "train: 1,024 of 4,096 tokens, 128 tokens/s, 24 s left".
PROGRESS = re.compile(r"^[^:\n]+: (?P<told>[\d,]+ of [\d,]+ .*)$", re.MULTILINE)
LEFT = re.compile(r", ((?:[0-9]{1,9} (?:d|h|min|s) ?){1,4})left")
UNIT_SECONDS = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
# As `core.provenance.described` begins a log: "...; cpu: AMD EPYC, 2 threads; host node3".
DEVICE = re.compile(r"; (?:cpu|cuda|mps): (?P<name>[^;\n]+?)(?:, [^;\n]*)?; host ")


def progress(log: Path) -> str:
    """Return done, total, rate and time left from the last line with them, or an empty text."""
    found = PROGRESS.findall(_end(log))
    return found[-1] if found else ""


def seconds_left(told: str) -> float | None:
    """Return the time left in what `progress` found."""
    if (found := LEFT.search(told)) is None:
        return None
    words = found[1].split()
    return float(
        sum(int(n) * UNIT_SECONDS[u] for n, u in zip(words[::2], words[1::2], strict=True))
    )


def device(log: Path) -> str:
    """Return the name of a job's device if its log has it, else an empty text."""
    try:
        with log.open("rb") as file:
            head = file.read(HEAD_BYTES).decode(errors="replace")
    except OSError:
        return ""
    found = DEVICE.search(head)
    return visible(found["name"]) if found else ""


def last_lines(log: Path, n: int) -> list[str]:
    """Return the last non-empty lines, with invisible characters spelled out."""
    return [line for line in _end(log).split("\n") if line.strip()][-n:]


def _end(log: Path) -> str:
    """Return the last bytes of a file, in whole lines; empty if there is no file."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            found = file.read().decode(errors="replace")
    except OSError:
        return ""
    return visible(found if size <= TAIL_BYTES else found.partition("\n")[2])
