"""Finds the text in a row by the name of its column."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nullsae.core.errors import UserError

# Columns that a message names, and characters of each.
MOST_NAMES, MOST_CHARACTERS = 20, 40


def path_of(column: str, names: Collection[str]) -> list[str]:
    """Return the keys that a column's name means: itself if it exists, else those at its dots."""
    return [column] if column in names else column.split(".")


def text_of(row: dict[str, Any], column: str, at: str, where: str) -> str:
    """Return the text in a column, `meta.text` for a nested one; empty for null.

    Raises:
        UserError: there is no such column, or no text in it; starts with `where` and names `at`.
    """
    text: Any = row
    for depth, key in enumerate(path := path_of(column, row)):
        if isinstance(text, list):
            raise no_objects(at, ".".join(path[:depth]), "a list", where)
        if text is None and depth:
            return ""
        if not isinstance(text, dict) or key not in text:
            raise no_column(at, column, list(row), where)
        text = text[key]
    if text is None:
        return ""
    if isinstance(text, bytes):  # from a Parquet column without a text type
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise UserError(f"{where}.column: {column!r} in {at} is not UTF-8 text") from None
    if not isinstance(text, str):
        raise UserError(f"{where}.column: {column!r} in {at} is {type(text).__name__}, not text")
    return text


def no_objects(at: str, column: str, kind: str, where: str) -> UserError:
    """Return the error of a column whose keys cannot be read."""
    return UserError(f"{where}.column: {column!r} in {at} is {kind}, not an object with keys")


def no_column(what: str, column: str, present: list[str], where: str) -> UserError:
    """Return the error of a missing column; names some of those present."""
    # Names are as long and as odd as whoever wrote the data made them.
    names = [" ".join(name.split())[:MOST_CHARACTERS] for name in present[:MOST_NAMES]]
    more = f" and {len(present) - MOST_NAMES} more" if len(present) > MOST_NAMES else ""
    return UserError(
        f"{where}.column: {what} has no column {column!r}; it has "
        f"{', '.join(names) or 'none'}{more}"
    )
