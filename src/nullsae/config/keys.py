"""Recognize keys and passwords: a config must not contain them, messages must not show them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# Prefixes of vendors' keys.
_VENDORS = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|gsk|csk|hf|gh[opsu]|github_pat|glpat|xai|xox[abp]|nvapi|pplx|"
    r"r8|fw|tgp)[-_](?=[A-Za-z_-]*\d)|AIza|AKIA|eyJ|hf_(?=[A-Za-z]{30}))[A-Za-z0-9_-]{8,}"
)
# Letters and digits in one piece, longer than words.
_PIECE = re.compile(r"[A-Za-z0-9]{24,}")
# Names of query parameters and of fields that are secrets in some API; `api-version` is not.
_SECRET_PARAMETER = re.compile(
    r"key|token|secret|passw|^pass$|pwd|signature|^sig$|^code$|auth|credential|jwt|session",
    re.IGNORECASE,
)
_SECRET_FIELD = re.compile(
    r"api[-_]?key|secret|passw|^pwd$|authorization|bearer|credential|(access|auth|api)[-_]?token|"
    r"^(token|key|auth)$",
    re.IGNORECASE,
)
# A commit: 40 hexadecimal digits after `@`, `snapshots/` or the word revision.
_COMMIT = r"(?:@|snapshots/|revision['\"]?[ =:]+['\"]?)[0-9a-f]{40}(?![A-Za-z0-9])"
_COMMIT_OR_KEY = re.compile(rf"{_COMMIT}|({_VENDORS.pattern}|{_PIECE.pattern})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def has_vendors_key(text: str) -> bool:
    """Return whether a text contains something with the prefix of a vendor's keys."""
    return _VENDORS.search(text) is not None


def has_key(text: str) -> bool:
    """Return whether a text contains a vendor's key, or a long piece of letters and digits."""
    pieces = (piece[0] for piece in _PIECE.finditer(text))
    return has_vendors_key(text) or any(_is_mixed(piece) for piece in pieces)


def without_keys(text: str) -> str:
    """Replace each piece that looks like a key by `***`; commits named as such stay."""
    return _COMMIT_OR_KEY.sub(lambda found: "***" if has_key(found[1] or "") else found[0], text)


def is_variable(text: str) -> bool:
    """Return whether a text is an environment variable's name rather than a key."""
    if not _VARIABLE.fullmatch(text) or has_key(text):
        return False
    # Not a short key without punctuation, such as s3cr3t0123456789.
    is_word = "_" in text or len(text) < 8 or text.upper() == text
    return is_word or not _is_mixed(text)


def names_secret_parameter(name: str) -> bool:
    """Return whether a query parameter of this name is a secret."""
    return _SECRET_PARAMETER.search(name) is not None


def names_secret_field(name: str) -> bool:
    """Return whether a field of this name is a secret if its value is text."""
    return _SECRET_FIELD.search(name) is not None


def secret_field(value: Any, name: str = "") -> str | None:
    """Return the dotted name of the first field in a JSON value that holds a secret.

    A field counts if its name says so and its value is text, or if it contains a vendor's key.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if has_key(str(key)):
                return f"{name}.***".removeprefix(".")
            below = f"{name}.{key}".removeprefix(".")
            if isinstance(inner, str) and inner and names_secret_field(str(key)):
                return below
            if (found := secret_field(inner, below)) is not None:
                return found
    elif isinstance(value, list | tuple):
        for inner in value:
            if (found := secret_field(inner, name)) is not None:
                return found
    elif isinstance(value, str) and has_vendors_key(value):
        return name
    return None


def named_variables(value: Any) -> Iterator[str]:
    """Yield the environment variables named in all `api_key_env` and `headers_env` of a config."""
    for key, inner in _fields(value):
        if key in ("api_key_env", "headers_env"):
            found = inner.values() if isinstance(inner, dict) else [inner]
            yield from (name for name in found if isinstance(name, str))


def secret_values(value: Any) -> Iterator[str]:
    """Yield the texts of all fields of a config whose names mean secrets."""
    for key, inner in _fields(value):
        if isinstance(inner, str) and names_secret_field(key) and not is_variable(inner):
            yield inner


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each field in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _fields(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _fields(inner)


def _is_mixed(piece: str) -> bool:
    return any(c.isdigit() for c in piece) and any(c.isalpha() for c in piece)
