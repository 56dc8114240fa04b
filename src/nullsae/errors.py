"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a config, a file or an environment that the user can mend.

    The message is one line: what is wrong, where (file or config key), the value found, and
    what would be right. The command line prints it without a traceback and exits with 2.
    """
