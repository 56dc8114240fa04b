"""Redact texts of a study for strangers: no secrets, and `~` for the home folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nullsae.autointerp.llm.secrets import BLANK, Secrets
from nullsae.config.keys import (
    has_key,
    is_variable,
    named_variables,
    names_secret_field,
    names_secret_parameter,
    secret_values,
    without_keys,
)
from nullsae.core.visible import visible

# A longer line is params or data; what is shared has these elsewhere, or leaves them out.
MOST_CHARACTERS = 2000
_QUOTE = r"\\*[\"']"
_ENDS = r"(?=\s*(?:[,}\])#]|$))"
_FIELD = re.compile(rf"([\w-]+)(?:{_QUOTE})?\s*[:=]\s*")
_OPTION = re.compile(rf"(--[\w-]+)(?:{_QUOTE})?[\s,=]+")
_WORD = re.compile(rf"(?:{_QUOTE})?(\w+|~)(?:{_QUOTE})?{_ENDS}")
_QUOTED = re.compile(rf"\\*([\"']).*?\\*\1{_ENDS}")
_BEARER = re.compile(r"\bbearer\s+\S+", re.IGNORECASE)
# A password may contain "@"; it ends at the last one before a blank.
_USER = re.compile(r"(?<=://)\S*@")
_USER_WITHOUT_SCHEME = re.compile(r"(?<![\w.+/-])[\w.+-]+:[^\s/:@\"']+@(?=\w)")
_QUERY = re.compile(r"(://[^\s\"'<>?#]*)[?#][^\s\"'<>]*")
_NOTHING = ("null", "None", "none", "true", "false", "True", "False", "~")


class Redaction:
    """Blanks what strangers may not read in texts."""

    def __init__(
        self, configs: Iterable[Any], environment: Mapping[str, str], home: Path | None
    ) -> None:
        """Collect the secrets of the environment and of configs.

        Args:
            configs: parsed configs; they need not be valid.
            environment: secret are the values of variables that a config names for keys and
                headers, and of all variables whose names say so, such as HF_TOKEN.
            home: the folder shown as `~`.
        """
        given = list(configs)
        names = {name for config in given for name in named_variables(config)}
        found = {v for k, v in environment.items() if k in names or names_secret_parameter(k)}
        found |= {value for config in given for value in secret_values(config)}
        found |= {name for name in names if not is_variable(name)}
        self._secrets = Secrets({str(n): value for n, value in enumerate(sorted(found))})
        homes = {
            str(each) for each in (home, home and home.resolve()) if each and len(each.parts) > 1
        }
        ways = "|".join(map(re.escape, sorted(homes, key=len)[::-1]))
        self._home = re.compile(rf"(?<![\w.-])(?:{ways})(?![\w.-])") if homes else None

    def __call__(self, text: str) -> str:
        """Return the redacted text; its line breaks stay unless a secret spans one."""
        text = visible(text)
        if self._secrets.is_in(text):
            text = "\n".join(map(self._secrets.blank, text.split("\n")))
            text = self._secrets.blank(text)
        return "\n".join(map(self._line, text.split("\n")))

    def _line(self, line: str) -> str:
        line = _BEARER.sub(f"Bearer {BLANK}", line)
        for name in (_FIELD, _OPTION):
            line = _without_fields(line, name)
        line = _USER.sub(f"{BLANK}@", line)
        line = _USER_WITHOUT_SCHEME.sub(f"{BLANK}@", line)
        line = without_keys(_QUERY.sub(rf"\1?{BLANK}", line))
        if self._home is not None:
            line = self._home.sub("~", line)
        if (more := len(line) - MOST_CHARACTERS) > 0:
            line = f"{line[:MOST_CHARACTERS]}… and {more:,} more characters"
        return line


def _without_fields(line: str, pattern: re.Pattern[str]) -> str:
    """Return a line with `***` for the values of fields whose names mean secrets.

    A value without quotes extends to the end of the line. Names of environment variables stay.
    """
    at = 0
    while found := pattern.search(line, at):
        at = found.end()
        if not names_secret_field(found[1].lstrip("-")):
            continue
        word, quoted = _WORD.match(line, at), _QUOTED.match(line, at)
        if word and _is_harmless(found[1], word[1]):
            at = word.end()
            continue
        line = f"{line[:at]}{BLANK}{line[quoted.end() :] if quoted else ''}"
        at += len(BLANK)
    return line


def _is_harmless(name: str, value: str) -> bool:
    """Return whether a value is empty, or names the variable that holds the secret."""
    if value in _NOTHING:
        return True
    is_name = name.endswith("_env") or ("_" in value and value.upper() == value)
    return is_name and is_variable(value) and not has_key(value)
