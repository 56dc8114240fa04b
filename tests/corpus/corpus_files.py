"""Words for making texts, and the files that a preparation leaves."""

from __future__ import annotations

from pathlib import Path

WORDS = (
    *("the", "of", "and", "to", "in", "states"),
    *("government", "congress", "public", "year", "war"),
)


def files_of(root: Path) -> dict[str, bytes]:
    folder = root / "results"
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
