"""Read plain data of files that others wrote, and limit its amount before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from nullsae.core.errors import UserError, first_line
from nullsae.core.files import read_small

# libyaml, if it is there, is many times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Limits of a config or a file of params. An alias counts each time.
MOST_BYTES, MOST_VALUES, MOST_CHARACTERS, MOST_DEPTH = 8 << 20, 500_000, 64_000_000, 100
# Python refuses to convert longer numbers to text.
MOST_DIGITS = 4000


def read_yaml(path: Path) -> Any:
    """Read a YAML or JSON file.

    Raises:
        UserError: it does not exist, is not readable, is larger than any config, or gives a key
            twice, of which a parser would silently drop the first; names the file.
    """
    try:
        text = read_small(path, MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8") from None
    try:
        _check_events(text, str(path))
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            check_amount(node, str(path))
            _check_keys(node, str(path))
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({_without_text(error)})") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: not YAML ({first_line(error)})") from None
    except (LookupError, TypeError, AttributeError):
        # PyYAML's answers to a value that its tag does not fit.
        said = "a value does not fit the tag before it, such as !!bool"
        raise UserError(f"{path}: not YAML ({said})") from None
    except RecursionError:
        raise UserError(f"{path}: nested more than {MOST_DEPTH} times") from None


def _check_events(text: str, where: str) -> None:
    """Check the depth and number of values before libyaml recurses into them."""
    depth = 0
    for n, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise UserError(f"{where}: nested more than {MOST_DEPTH} times")
        if n > 2 * MOST_VALUES:
            raise UserError(f"{where}: more than {MOST_VALUES:,} values; a config has hundreds")


def _check_keys(node: Any, where: str) -> None:
    """Check that no mapping has a key twice."""
    pending, seen = [node], set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        pending += _inside(one)
        lines: dict[str, int] = {}
        for key, _ in one.value if isinstance(one, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{where}: {key.value[:80]!r} is given twice, in lines {lines[key.value]} and "
                    f"{line}; only the last would count"
                )
            lines[key.value] = line


def read_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read the object in a JSON file of a model or an SAE.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object.
        UserError: it is not a file, or larger than any such file.
    """
    found = parse_object(read_small(path, most_bytes))
    check_amount(found, str(path))
    return found


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse the object in JSON text; a ValueError if there is none."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def check_amount(data: Any, where: str) -> None:
    """Check the amount of YAML or JSON data, or of YAML nodes, before it is used.

    Raises:
        UserError: it contains itself, or more values, characters or levels than any config.
    """
    sizes: dict[int, tuple[int, int, int]] = {}
    # Without recursion, which data that is nested too deeply would break.
    pending: list[tuple[Any, int, bool]] = [(data, 0, False)]
    open_: set[int] = set()
    while pending:
        value, depth, is_done = pending.pop()
        inner = _inside(value)
        if is_done:
            open_.discard(id(value))
            parts = [sizes[id(one)] for one in inner]
            values, characters, height = (
                1 + sum(p[0] for p in parts),
                sum(p[1] for p in parts),
                1 + max((p[2] for p in parts), default=0),
            )
            if values > MOST_VALUES or characters > MOST_CHARACTERS:
                raise UserError(
                    f"{where}: more than {MOST_VALUES:,} values or {MOST_CHARACTERS:,} characters, "
                    f"counting aliases each time; a config has hundreds of values"
                )
            if height > MOST_DEPTH:
                raise UserError(f"{where}: nested more than {MOST_DEPTH} times")
            sizes[id(value)] = values, characters, height
        elif id(value) in sizes:
            continue
        elif id(value) in open_:
            raise UserError(f"{where}: a value contains itself, by an alias")
        elif not inner:
            sizes[id(value)] = 1, _length(value, where), 1
        else:
            if depth > MOST_DEPTH:
                raise UserError(f"{where}: nested more than {MOST_DEPTH} times")
            open_.add(id(value))
            pending.append((value, depth, True))
            pending += [(one, depth + 1, False) for one in inner]


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return [*value]
    if isinstance(value, yaml.MappingNode):
        return [one for pair in value.value for one in pair]
    return [*value.value] if isinstance(value, yaml.SequenceNode) else []


def _length(value: Any, where: str) -> int:
    if isinstance(value, yaml.ScalarNode):
        if value.tag == "tag:yaml.org,2002:int" and len(value.value) > MOST_DIGITS:
            raise UserError(f"{where}: a number of more than {MOST_DIGITS} digits")
        value = value.value
    if isinstance(value, int) and value.bit_length() > 3 * MOST_DIGITS:
        raise UserError(f"{where}: a number of more than {MOST_DIGITS} digits")
    return len(value) if isinstance(value, str | bytes) else 1


def _without_text(error: yaml.YAMLError) -> str:
    """Return the problem and its place without the line itself, which may have a secret."""
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or first_line(error)).split())
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark else problem
