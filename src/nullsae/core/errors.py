"""The exception whose message is for users, and the first line of other exceptions."""

from __future__ import annotations

from nullsae.core.visible import visible


class UserError(Exception):
    """A mistake in a config, a file or an environment that the user can fix.

    The message is one line: what is wrong, where (file or config key), the value found, and
    what would be right. The command line prints it without a traceback and exits with 2. Control
    characters in values are spelled out, because others may have written them.
    """

    def __init__(self, message: object) -> None:
        super().__init__(visible(str(message)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none.

    A first line that ends with a colon announces the second, and a `KeyError` has only the key.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    kind = f"{type(error).__name__}: " if isinstance(error, KeyError) else ""
    return kind + first.rstrip(".")
